/* What trio's Runner.reschedule does, and which task is running.
 *
 * Rules of this file: trio is seen here only. What it does for a task that is woken is done in the
 * same order, instruments included. A guest run, whose host may have to be told, is left to trio.
 */
#include "hot.h"

PyObject *trio_message, *checkpoint_message;

static PyObject *run_context; /* GLOBAL_RUN_CONTEXT */
static PyObject *s_task, *s_send, *s_append, *s_data, *s_call, *s_task_scheduled, *s_reschedule;

/* Descriptors of the slots of trio's Task and Runner. All are of one type. */
static PyObject *d_coro, *d_next_send_fn, *d_next_send, *d_abort_func, *d_sleep_data, *d_runner;
static PyObject *d_runq, *d_is_guest, *d_instruments, *d_ki_pending;
static PyObject *d_cancel_status, *d_effectively_cancelled, *d_cancel_points;
static PyTypeObject *slot_type;
static descrgetfunc descriptor_get;
static descrsetfunc descriptor_set;

PyObject *slot_get(PyObject *descriptor, PyObject *object)
{
    return descriptor_get(descriptor, object, (PyObject *)Py_TYPE(object));
}

int slot_set(PyObject *descriptor, PyObject *object, PyObject *value)
{
    return descriptor_set(descriptor, object, value);
}

static int is_set(PyObject *descriptor, PyObject *object)
{
    PyObject *flag = object == NULL ? NULL : slot_get(descriptor, object);
    int result = flag == NULL ? -1 : PyObject_IsTrue(flag);

    Py_XDECREF(flag);
    return result;
}

/* The task that is running in this thread. */
PyObject *current_task(void)
{
    return PyObject_GetAttr(run_context, s_task);
}

static int tell_instruments(PyObject *runner, PyObject *task)
{
    PyObject *instruments = slot_get(d_instruments, runner), *data, *called;
    int there, result = -1;

    if (instruments == NULL)
        return -1;
    data = PyObject_GetAttr(instruments, s_data);
    if (data != NULL) {
        there = PyDict_Contains(data, s_task_scheduled);
        if (there > 0) {
            called = PyObject_CallMethodObjArgs(instruments, s_call, s_task_scheduled, task, NULL);
            result = called == NULL ? -1 : 0;
            Py_XDECREF(called);
        } else {
            result = there;
        }
    }
    Py_XDECREF(data);
    Py_DECREF(instruments);
    return result;
}

static int append_to_queue(PyObject *runner, PyObject *task)
{
    PyObject *runq = slot_get(d_runq, runner), *appended = NULL;

    if (runq != NULL)
        appended = PyObject_CallMethodObjArgs(runq, s_append, task, NULL);
    Py_XDECREF(runq);
    Py_XDECREF(appended);
    return appended == NULL ? -1 : 0;
}

static int reschedule_in_python(PyObject *runner, PyObject *task, PyObject *outcome)
{
    PyObject *done = PyObject_CallMethodObjArgs(runner, s_reschedule, task, outcome, NULL);

    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The coroutine's `send`, new. A bound method is an object that the garbage collector counts: with
 * one for each task that a pass wakes, 700 tasks would start a collection. So it is kept. */
static PyObject *get_send(PyObject *coro, Sender *kept)
{
    PyObject *send;

    if (kept->coro != coro) {
        send = PyObject_GetAttr(coro, s_send);
        if (send == NULL)
            return NULL;
        put(&kept->send, send);
        Py_INCREF(coro);
        put(&kept->coro, coro);
    }
    Py_INCREF(kept->send);
    return kept->send;
}

int reschedule(PyObject *task, PyObject *outcome, Sender *kept)
{
    PyObject *coro = slot_get(d_coro, task), *send = NULL, *runner = slot_get(d_runner, task);
    int result = -1, guest = is_set(d_is_guest, runner);

    if (coro != NULL && guest == 0)
        send = get_send(coro, kept);
    if (guest > 0)
        result = reschedule_in_python(runner, task, outcome);
    else if (send != NULL && slot_set(d_next_send_fn, task, send) == 0
        && slot_set(d_next_send, task, outcome) == 0 && slot_set(d_abort_func, task, Py_None) == 0
        && slot_set(d_sleep_data, task, Py_None) == 0 && append_to_queue(runner, task) == 0)
        result = tell_instruments(runner, task);
    Py_XDECREF(send);
    Py_XDECREF(coro);
    Py_XDECREF(runner);
    return result;
}

static int count_cancel_point(PyObject *task)
{
    PyObject *before = slot_get(d_cancel_points, task), *after = NULL;
    int result = -1;

    if (before != NULL)
        after = PyLong_FromLong(PyLong_AsLong(before) + 1);
    if (after != NULL)
        result = slot_set(d_cancel_points, task, after);
    Py_XDECREF(before);
    Py_XDECREF(after);
    return result;
}

/* checkpoint_if_cancelled(): 1 if it would raise Cancelled, or perhaps KeyboardInterrupt; then it
 * is to be called. -1: an exception. */
int is_cancelled(PyObject *task)
{
    PyObject *status = slot_get(d_cancel_status, task), *runner = NULL;
    int cancelled = is_set(d_effectively_cancelled, status);

    Py_XDECREF(status);
    if (cancelled == 0) {
        runner = slot_get(d_runner, task);
        cancelled = is_set(d_ki_pending, runner);
        Py_XDECREF(runner);
    }
    if (cancelled == 0 && count_cancel_point(task) < 0)
        return -1;
    return cancelled;
}

/* -- finding all that in trio */

PyObject *find_slot(PyObject *module, const char *owner, const char *name)
{
    PyObject *found = PyObject_GetAttrString(module, owner), *descriptor = NULL;

    if (found != NULL)
        descriptor = PyObject_GetAttrString(found, name);
    Py_XDECREF(found);
    if (descriptor != NULL && Py_TYPE(descriptor) != slot_type) {
        PyErr_Format(PyExc_AttributeError, "trio's %s.%s is not a slot", owner, name);
        Py_CLEAR(descriptor);
    }
    return descriptor;
}

static int find_slots(PyObject *run)
{
    const struct {
        PyObject **into;
        const char *owner, *name;
    } wanted[] = {
        {&d_coro, "Task", "coro"},
        {&d_next_send_fn, "Task", "_next_send_fn"},
        {&d_next_send, "Task", "_next_send"},
        {&d_abort_func, "Task", "_abort_func"},
        {&d_sleep_data, "Task", "custom_sleep_data"},
        {&d_runner, "Task", "_runner"},
        {&d_runq, "Runner", "runq"},
        {&d_instruments, "Runner", "instruments"},
        {&d_is_guest, "Runner", "is_guest"},
        {&d_ki_pending, "Runner", "ki_pending"},
        {&d_cancel_status, "Task", "_cancel_status"},
        {&d_cancel_points, "Task", "_cancel_points"},
        {&d_effectively_cancelled, "CancelStatus", "effectively_cancelled"},
    };

    for (size_t i = 0; i < COUNT(wanted); i++) {
        *wanted[i].into = find_slot(run, wanted[i].owner, wanted[i].name);
        if (*wanted[i].into == NULL)
            return -1;
    }
    return 0;
}

/* The descriptors of our own members are of the type that those of slots are. */
static int find_slot_type(void)
{
    PyObject *res = PyObject_GetAttrString((PyObject *)operation_type, "res");

    if (res == NULL)
        return -1;
    slot_type = Py_TYPE(res);
    descriptor_get = (descrgetfunc)PyType_GetSlot(slot_type, Py_tp_descr_get);
    descriptor_set = (descrsetfunc)PyType_GetSlot(slot_type, Py_tp_descr_set);
    Py_DECREF(res);
    return 0;
}

int find_trio(void)
{
    const Name names[] = {
        {&s_task, "task"}, {&s_send, "send"}, {&s_append, "append"}, {&s_data, "data"},
        {&s_call, "call"}, {&s_task_scheduled, "task_scheduled"}, {&s_reschedule, "reschedule"},
    };
    PyObject *run = PyImport_ImportModule("trio._core._run"), *traps = NULL;
    int result = -1;

    if (run != NULL)
        traps = PyImport_ImportModule("trio._core._traps");
    if (traps != NULL) {
        trio_message = PyObject_GetAttrString(traps, "WaitTaskRescheduled");
        checkpoint_message = PyObject_GetAttrString(traps, "CancelShieldedCheckpoint");
        run_context = PyObject_GetAttrString(run, "GLOBAL_RUN_CONTEXT");
    }
    if (trio_message != NULL && checkpoint_message != NULL && run_context != NULL
        && make_names(names, COUNT(names)) == 0
        && find_slot_type() == 0)
        result = find_slots(run);
    Py_XDECREF(run);
    Py_XDECREF(traps);
    return result;
}
