/* trio's epoll manager: where it keeps the tasks that wait for a descriptor.
 *
 * Rules of this file: trio is seen here and in task.c only. What is done to its registrations is
 * what its own wait_readable does.
 */
#include "hot.h"

#include <sys/epoll.h>

static PyObject *d_epoll, *d_registered, *d_read_task, *d_write_task, *d_current_flags, *s_fileno;

/* The descriptor of the manager's epoll instance, which a forked child may replace. */
int epoll_number(PyObject *manager)
{
    PyObject *epoll = slot_get(d_epoll, manager), *number = NULL;
    long fd = -1;

    if (epoll != NULL)
        number = PyObject_CallMethodObjArgs(epoll, s_fileno, NULL);
    if (number != NULL)
        fd = PyLong_AsLong(number);
    Py_XDECREF(number);
    Py_XDECREF(epoll);
    return (int)fd;
}

/* The tasks that wait for a descriptor: an EpollWaiters. */
PyObject *waiters_of(PyObject *manager, int fd)
{
    PyObject *registered = slot_get(d_registered, manager), *key = PyLong_FromLong(fd);
    PyObject *waiters = NULL;

    if (registered != NULL && key != NULL)
        waiters = PyObject_GetItem(registered, key);
    Py_XDECREF(registered);
    Py_XDECREF(key);
    return waiters;
}

static int has(PyObject *waiters, PyObject *descriptor)
{
    PyObject *task = slot_get(descriptor, waiters);

    Py_XDECREF(task); /* the waiters have it */
    return task == NULL ? -1 : task != Py_None;
}

/* Sets the task that waits to read or to write; NULL: none. Returns the events that are waited for.
 * -1: another task does, or an exception. */
long set_waiter(PyObject *waiters, int reads, PyObject *task)
{
    PyObject *own = reads ? d_read_task : d_write_task;
    PyObject *other = reads ? d_write_task : d_read_task;
    long events = reads ? EPOLLIN : EPOLLOUT;
    int taken = task == NULL ? 0 : has(waiters, own), shared = has(waiters, other);

    if (taken != 0 || shared < 0 || slot_set(own, waiters, task == NULL ? Py_None : task) < 0)
        return -1;
    return shared ? EPOLLIN | EPOLLOUT : events;
}

/* Notes what the epoll instance was told to wait for. */
int set_flags(PyObject *waiters, long flags)
{
    PyObject *number = PyLong_FromLong(flags);
    int result = number == NULL ? -1 : slot_set(d_current_flags, waiters, number);

    Py_XDECREF(number);
    return result;
}

int find_epoll(void)
{
    const Name names[] = {{&s_fileno, "fileno"}};
    PyObject *module = PyImport_ImportModule("trio._core._io_epoll");

    if (module == NULL || make_names(names, COUNT(names)) < 0) {
        Py_XDECREF(module);
        return -1;
    }
    d_epoll = find_slot(module, "EpollIOManager", "_epoll");
    d_registered = find_slot(module, "EpollIOManager", "_registered");
    d_read_task = find_slot(module, "EpollWaiters", "read_task");
    d_write_task = find_slot(module, "EpollWaiters", "write_task");
    d_current_flags = find_slot(module, "EpollWaiters", "current_flags");
    Py_DECREF(module);
    return d_epoll == NULL || d_registered == NULL || d_read_task == NULL || d_write_task == NULL
            || d_current_flags == NULL ? -1 : 0;
}
