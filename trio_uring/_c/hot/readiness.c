/* Operations by readiness: the system call of an operation is tried, and its task waits in trio's
 * own epoll instance, by what trio itself keeps for a waiting task.
 *
 * As in _driver/readiness.py: a call that succeeds at once is followed by a checkpoint that no
 * cancellation interrupts, and one that is cancelled already is not made (`is_cancelled`).
 *
 * Rules of this file: sockets only, which never block. The GIL is held for small amounts: giving it
 * up would cost as much as the call. What trio's registration of a descriptor needs beyond the
 * usual is left to trio.
 */
#include "hot.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define SMALL 4096            /* bytes that are moved with the GIL held */
#define RECEIVE_MAX 65536     /* bytes that one receive makes room for, as in Python */

PyTypeObject *ready_type;

static PyObject *s_direct, *s_submitted, *s_moved, *s_unwrap, *s_withdraw, *closed_error;

/* -- the calls */

static ssize_t call_recv(int fd, char *at, size_t length)
{
    ssize_t count;

    if (length <= SMALL)
        return recv(fd, at, length, MSG_DONTWAIT);
    Py_BEGIN_ALLOW_THREADS
    count = recv(fd, at, length, MSG_DONTWAIT);
    Py_END_ALLOW_THREADS
    return count;
}

static ssize_t call_sendmsg(int fd, struct msghdr *header, size_t length)
{
    ssize_t count;

    if (length <= SMALL)
        return sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL);
    Py_BEGIN_ALLOW_THREADS
    count = sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL);
    Py_END_ALLOW_THREADS
    return count;
}

static ssize_t call_send(int fd, const char *at, size_t length)
{
    ssize_t count;

    if (length <= SMALL)
        return send(fd, at, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    Py_BEGIN_ALLOW_THREADS
    count = send(fd, at, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    Py_END_ALLOW_THREADS
    return count;
}

/* The memory that receives go through, at least `length` bytes; it belongs to the engine. */
static char *scratch(Ready *engine, size_t length)
{
    if (length <= SMALL)
        return engine->small;
    if (engine->large == NULL)
        engine->large = PyMem_Malloc(RECEIVE_MAX);
    return engine->large;
}

static ssize_t receive(Ready *engine, Direction *way, Operation *op)
{
    size_t most = (size_t)op->length < RECEIVE_MAX ? (size_t)op->length : RECEIVE_MAX;
    char *at = scratch(engine, most);
    ssize_t count;

    if (at == NULL) {
        errno = ENOMEM;
        return -1;
    }
    count = call_recv(way->fd, at, most);
    if (count >= 0)
        put(&op->chunk, PyBytes_FromStringAndSize(at, (Py_ssize_t)count));
    return count;
}

/* Makes the system call. Returns its result, or -errno. */
static int attempt(Ready *engine, Direction *way, Operation *op, int kind)
{
    PyObject *pinned = NULL;
    unsigned length;
    ssize_t count;
    char *at;

    errno = 0;
    if (kind == RECEIVE) {
        count = receive(engine, way, op);
    } else {
        pinned = pin(op, &at, &length);
        if (pinned == NULL)
            return -ENOMEM;
        if (kind == INTO)
            count = call_recv(way->fd, at, (size_t)op->length);
        else if (kind == SEND)
            count = call_send(way->fd, at, (size_t)op->length);
        else
            count = call_sendmsg(way->fd, (struct msghdr *)(void *)at, (size_t)op->length);
    }
    count = count < 0 ? -errno : count;
    Py_XDECREF(pinned);
    return (int)count;
}

static int would_block(int res)
{
    return res == -EAGAIN || res == -EWOULDBLOCK || res == -EINTR;
}

/* -- what Python's `attempt` counts */

static int count_direct(PyObject *counters)
{
    PyObject *before = PyObject_GetAttr(counters, s_direct), *after = NULL;
    int result = -1;

    if (before != NULL)
        after = PyLong_FromLong(PyLong_AsLong(before) + 1);
    if (after != NULL)
        result = PyObject_SetAttr(counters, s_direct, after);
    Py_XDECREF(before);
    Py_XDECREF(after);
    return result;
}

static int add_to_list(PyObject *counters, PyObject *name, int opcode, long amount)
{
    PyObject *counts = PyObject_GetAttr(counters, name);
    int result = counts == NULL ? -1 : add_to(counts, opcode, amount);

    Py_XDECREF(counts);
    return result;
}

static int count_call(Ready *engine, Operation *op)
{
    if (count_direct(engine->counters) < 0
        || add_to_list(engine->counters, s_submitted, op->opcode, 1) < 0)
        return -1;
    if (op->res > 0)
        return add_to_list(engine->counters, s_moved, op->opcode, op->res);
    return op->res < 0 ? count_failure(engine->counters, op) : 0;
}

/* -- waiting in trio's epoll */

/* What trio's `_update_registrations` does where nothing is wrong. -1: something is. */
static int arm(Ready *engine, int fd, uint32_t events)
{
    struct epoll_event event;
    int epoll_fd = epoll_number(engine->manager);

    if (epoll_fd < 0)
        return -1;
    memset(&event, 0, sizeof event);
    event.events = events | EPOLLONESHOT;
    event.data.fd = fd;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* Registers the task with trio's manager. 0: trio has to do it; nothing has changed. */
static int register_task(Ready *engine, Direction *way, Operation *op, int reads)
{
    PyObject *waiters = waiters_of(engine->manager, way->fd);
    long events = waiters == NULL ? -1 : set_waiter(waiters, reads, op->task);
    int result = 0;

    if (events > 0 && arm(engine, way->fd, (uint32_t)events) == 0)
        result = set_flags(waiters, events) == 0;
    if (events > 0 && !result)
        (void)set_waiter(waiters, reads, NULL);
    Py_XDECREF(waiters);
    PyErr_Clear();
    return result;
}

static int is_reader(Call *call)
{
    return call->kind == RECEIVE || call->kind == INTO;
}

/* The task does not wait any more. */
static void stop_waiting(Ready *engine, Operation *op)
{
    Py_CLEAR(op->task);
    if (PyDict_Contains(engine->waiting, (PyObject *)op) == 1)
        (void)PyDict_DelItem(engine->waiting, (PyObject *)op);
    PyErr_Clear();
}

/* Parks the task until its direction may be ready. Returns what to yield. NULL: trio has to do
 * it. */
static PyObject *wait_in_epoll(Call *call, Ready *engine)
{
    Operation *op = call->op;
    PyObject *since = PyFloat_FromDouble(monotonic()), *task = current_task(), *message = NULL;

    if (since != NULL && task != NULL
        && PyDict_SetItem(engine->waiting, (PyObject *)op, since) == 0) {
        Py_INCREF(task);
        put(&op->task, task);
        message = parked_message(op); /* first: once the task is registered, nothing may fail */
        if (message != NULL && !register_task(engine, call->way, op, is_reader(call)))
            Py_CLEAR(message);
    }
    Py_XDECREF(since);
    Py_XDECREF(task);
    if (message == NULL)
        stop_waiting(engine, op);
    else
        (void)add_to_list(engine->counters, s_submitted, op->opcode, 1);
    PyErr_Clear();
    call->wait = message == NULL ? CHECKPOINT : READINESS;
    return message;
}

/* -- a call */

/* Makes the system call. Returns what to yield if it would wait. NULL: it is done, or an error. */
static PyObject *try_it(Call *call, Ready *engine)
{
    Operation *op = call->op;
    int res = attempt(engine, call->way, op, call->kind);
    PyObject *message;

    call->wait = CHECKPOINT;
    op->res = res;
    if (!would_block(res)) {
        (void)count_call(engine, op);
        return NULL;
    }
    message = wait_in_epoll(call, engine);
    op->res = message == NULL ? res : 0;
    return message;
}

/* Whether the engine, and trio, are such that C can perform an operation now. -1: an exception. */
int is_usual_ready(Ready *engine, Direction *way)
{
    PyObject *task;
    int cancelled;

    if (engine->engine.phase != running || !way->is_socket || way->closes_alone
        || engine->engine.thread != PyThread_get_thread_ident() || is_none(engine->manager))
        return 0;
    task = current_task();
    cancelled = task == NULL ? -1 : is_cancelled(task);
    Py_XDECREF(task);
    return cancelled < 0 ? -1 : !cancelled;
}

/* Makes the first attempt of a call that has its direction. Returns what to yield. */
PyObject *begin_by_call(Call *call, Ready *engine)
{
    PyObject *message;

    call->op->res = 0;
    message = try_it(call, engine);
    if (message != NULL)
        return message;
    /* A checkpoint follows; also where trio has to wait, which is done as the rest. */
    Py_INCREF(checkpoint_message);
    return checkpoint_message;
}

/* The outcome of a wait. 0: the direction may be ready; 1: trio has failed to wait; -1: raised. */
static int take_wait(Ready *engine, Operation *op, PyObject *outcome)
{
    PyObject *unwrapped = PyObject_CallMethodObjArgs(outcome, s_unwrap, NULL);

    if (unwrapped != NULL) {
        Py_DECREF(unwrapped);
        /* The system call will be counted instead. */
        return add_to_list(engine->counters, s_submitted, op->opcode, -1);
    }
    if (PyErr_ExceptionMatches(closed_error))
        op->res = -ECANCELED;
    else if (PyErr_ExceptionMatches(PyExc_OSError))
        op->res = -EAGAIN; /* the rest waits again, and finds it again */
    else
        return -1; /* it was cancelled, and `withdraw` has counted that */
    PyErr_Clear();
    return count_failure(engine->counters, op) < 0 ? -1 : 1;
}

/* Goes on after a checkpoint or a wait. In `message`: what to yield, if it waits again. */
int resume_by_call(Call *call, PyObject *outcome, PyObject **message)
{
    Ready *engine = (Ready *)call->op->engine;
    Operation *op = call->op;
    int waited;

    *message = NULL;
    if (call->wait == READINESS) {
        stop_waiting(engine, op);
        call->wait = CHECKPOINT;
        waited = take_wait(engine, op, outcome);
        if (waited < 0)
            return -1;
        *message = waited == 0 ? try_it(call, engine) : NULL;
        if (*message != NULL)
            return 0;
    }
    op->owed = 0;
    Py_CLEAR(op->buffer);
    Py_CLEAR(op->buffers);
    return 0;
}

/* A call that is destroyed while it waits: the task is not to be woken any more. */
void forget_wait(Call *call)
{
    PyObject *done;

    if (call->op->task != NULL) {
        done = PyObject_CallMethodObjArgs(call->op->engine, s_withdraw, (PyObject *)call->op, NULL);
        if (done == NULL)
            PyErr_WriteUnraisable((PyObject *)call->op);
        Py_XDECREF(done);
        stop_waiting((Ready *)call->op->engine, call->op);
    }
}

/* -- the type */

static int ready_traverse(PyObject *self, visitproc visit, void *arg)
{
    Ready *engine = (Ready *)self;

    Py_VISIT(engine->counters);
    Py_VISIT(engine->waiting);
    Py_VISIT(engine->manager);
    return engine_traverse(self, visit, arg);
}

static int ready_clear(PyObject *self)
{
    Ready *engine = (Ready *)self;

    Py_CLEAR(engine->counters);
    Py_CLEAR(engine->waiting);
    Py_CLEAR(engine->manager);
    return engine_clear(self);
}

static void ready_dealloc(PyObject *self)
{
    PyMem_Free(((Ready *)self)->large);
    free_tracked(self, ready_clear);
}

static PyMemberDef ready_members[] = {
    {"counters", T_OBJECT_EX, offsetof(Ready, counters), 0, NULL},
    {"waiting", T_OBJECT_EX, offsetof(Ready, waiting), 0, NULL},
    {"manager", T_OBJECT, offsetof(Ready, manager), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot ready_slots[] = {
    {Py_tp_doc, "The fields of an engine by readiness that C reads."},
    {Py_tp_dealloc, ready_dealloc},
    {Py_tp_traverse, ready_traverse},
    {Py_tp_clear, ready_clear},
    {Py_tp_members, ready_members},
    {0, NULL},
};

static PyType_Spec ready_spec = {
    "trio_uring._hot.ReadinessEngine", sizeof(Ready), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, ready_slots,
};

int make_ready_type(void)
{
    const Name names[] = {
        {&s_direct, "direct"}, {&s_submitted, "submitted"}, {&s_moved, "moved"},
        {&s_unwrap, "unwrap"}, {&s_withdraw, "withdraw"},
    };
    PyObject *trio = PyImport_ImportModule("trio"), *bases = PyTuple_Pack(1, engine_type);

    if (trio != NULL && bases != NULL && make_names(names, COUNT(names)) == 0) {
        closed_error = PyObject_GetAttrString(trio, "ClosedResourceError");
        ready_type = (PyTypeObject *)PyType_FromSpecWithBases(&ready_spec, bases);
    }
    Py_XDECREF(trio);
    Py_XDECREF(bases);
    return closed_error == NULL || ready_type == NULL ? -1 : 0;
}
