/* The accelerator: what most calls cross for every operation, in C. `_driver/operation.py` says the
 * same in Python, and is the specification (PEP 399): it is used where this file was not built, or
 * trio is not as it was, and the same tests run over both.
 *
 * An operation is itself what its task awaits. Awaiting it yields trio's own message for "parked",
 * and `finish`, called for its completion, puts the task back into trio's queue as trio's
 * reschedule() does. No coroutine, and nothing that the garbage collector tracks, is made for a
 * call.
 *
 * Rules of this file:
 *
 * - Limited API 3.10: one build serves all Pythons from there on.
 * - Whatever is not as usual is left to Python: aborting, refusing, guest runs.
 * - Each private name of trio's that is used is looked up in `setup`, which raises if one is not
 *   there. Slots are read and written by their own descriptors.
 * - An error leaves everything as it was, or is the caller's to tell.
 */

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    PyObject_HEAD
    PyObject *task;         /* waits for the completion */
    PyObject *then;         /* is called with the completion */
    PyObject *raise_cancel; /* of a cancellation that was asked for, or a refusal */
    PyObject *message;      /* WaitTaskRescheduled(self.abort); made once, unlinked by the owner */
    PyObject *state;        /* NEW, SUBMITTED, CANCELLING, DONE: see _ring/op.py */
    PyObject *buffer;       /* held until the completion */
    PyObject *buffers;      /* for several buffers: the same */
    PyObject *pin;          /* what keeps what the entry points at */
    PyObject *chunk;        /* what a provided buffer held */
    PyObject *entry;        /* the ring's own, kept from one use to the next */
    unsigned long long entry_at; /* the address of the entry, while there is one */
    long long token;
    Py_ssize_t start, length;    /* bytes of the buffer to leave out; bytes that follow */
    double born;            /* seconds, time.monotonic() of the pass that submitted it */
    int opcode;
    int res;                /* >= 0, or -errno */
    char owed;              /* a call has had it performed, and has not had the result */
    char parked;            /* between the yield and the task's resumption */
} Operation;

static PyObject *message_type, *s_abort, *s_unwrap, *s_send, *s_append, *s_data, *s_call;
static PyObject *s_task_scheduled, *s_submitted, *s_done, *s_in_kernel, *s_reschedule;
static PyObject *s_count_failure, *s_submit, *s_submit_whole;

static PyTypeObject *operation_type;

/* Descriptors of slots of trio.lowlevel.Task and of trio's Runner. */
static PyObject *d_coro, *d_next_send_fn, *d_next_send, *d_abort_func, *d_sleep_data, *d_runner;
static PyObject *d_runq, *d_is_guest, *d_instruments;

/* Of all of them: they are of one type. */
static descrgetfunc descriptor_get;
static descrsetfunc slot_set;

static PyObject *slot_get(PyObject *descriptor, PyObject *object)
{
    return descriptor_get(descriptor, object, (PyObject *)Py_TYPE(object));
}

/* -- what trio's Runner.reschedule does */

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

/* A guest run's host may have to be told: that is Python's affair. */
static int is_guest(PyObject *runner)
{
    PyObject *flag = slot_get(d_is_guest, runner);
    int result = flag == NULL ? -1 : PyObject_IsTrue(flag);

    Py_XDECREF(flag);
    return result;
}

static int reschedule_in_python(PyObject *runner, PyObject *task, PyObject *outcome)
{
    PyObject *done = PyObject_CallMethodObjArgs(runner, s_reschedule, task, outcome, NULL);

    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int reschedule(PyObject *task, PyObject *outcome)
{
    PyObject *coro = slot_get(d_coro, task), *send = NULL, *runner = slot_get(d_runner, task);
    int result = -1, guest = runner == NULL ? -1 : is_guest(runner);

    if (coro != NULL && guest == 0)
        send = PyObject_GetAttr(coro, s_send);
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

/* -- an operation's result */

/* Whether the kernel may still have it: `self.state.in_kernel`. */
static int is_in_kernel(PyObject *self)
{
    PyObject *state = ((Operation *)self)->state, *flag;
    int result = -1;

    if (state == NULL)
        return 0;
    flag = PyObject_GetAttr(state, s_in_kernel);
    if (flag != NULL)
        result = PyObject_IsTrue(flag);
    Py_XDECREF(flag);
    return result;
}

static PyObject *op_unwrap(PyObject *self, PyObject *ignored)
{
    Operation *op = (Operation *)self;
    PyObject *raise_cancel = op->raise_cancel, *raised;
    int in_kernel;

    (void)ignored;
    op->parked = 0;
    if (raise_cancel == NULL || raise_cancel == Py_None) {
        op->owed = 0;
        return PyLong_FromLong(op->res);
    }
    /* A driver that has failed tells it before the kernel does, which may do so later. */
    in_kernel = is_in_kernel(self);
    if (in_kernel < 0)
        return NULL;
    op->owed = (char)in_kernel;
    op->raise_cancel = NULL;
    if (op->res == -ECANCELED) {
        raised = PyObject_CallFunctionObjArgs(raise_cancel, NULL);
        Py_DECREF(raise_cancel);
        if (raised != NULL) {
            Py_DECREF(raised);
            PyErr_SetString(PyExc_RuntimeError, "raise_cancel has returned");
        }
        return NULL;
    }
    Py_DECREF(raise_cancel);
    return PyLong_FromLong(op->res);
}

static PyObject *op_finish(PyObject *self, PyObject *ignored)
{
    Operation *op = (Operation *)self;
    PyObject *then = op->then, *task, *called;
    int result;

    (void)ignored;
    if (then != NULL && then != Py_None) {
        op->then = NULL;
        called = PyObject_CallFunctionObjArgs(then, NULL);
        Py_DECREF(then);
        if (called == NULL)
            return NULL;
        Py_DECREF(called);
    }
    task = op->task;
    if (task == NULL || task == Py_None)
        Py_RETURN_FALSE;
    op->task = NULL;
    result = reschedule(task, self);
    Py_DECREF(task);
    if (result < 0)
        return NULL;
    Py_RETURN_TRUE;
}

/* -- awaiting it */

static PyObject *op_await(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

static PyObject *parked_message(Operation *op)
{
    PyObject *abort_func;

    if (op->message == NULL) {
        abort_func = PyObject_GetAttr((PyObject *)op, s_abort);
        if (abort_func == NULL)
            return NULL;
        op->message = PyObject_CallFunctionObjArgs(message_type, abort_func, NULL);
        Py_DECREF(abort_func);
    }
    Py_XINCREF(op->message);
    return op->message;
}

static PySendResult op_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    Operation *op = (Operation *)self;

    if (!op->parked) {
        *result = parked_message(op);
        if (*result == NULL)
            return PYGEN_ERROR;
        op->parked = 1;
        return PYGEN_NEXT;
    }
    if (value == self) {
        *result = op_unwrap(self, NULL);
    } else { /* trio's own outcome: the abort has succeeded */
        op->parked = 0;
        *result = PyObject_CallMethodObjArgs(value, s_unwrap, NULL);
    }
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PyObject *stop_with(PyObject *value)
{
    PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, value, NULL);

    Py_DECREF(value);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *op_send(PyObject *self, PyObject *value)
{
    PyObject *result = NULL;
    PySendResult sent = op_am_send(self, value, &result);

    return sent == PYGEN_RETURN ? stop_with(result) : result;
}

static PyObject *op_iternext(PyObject *self)
{
    return op_send(self, Py_None);
}

static PyObject *op_throw(PyObject *self, PyObject *arguments)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;

    if (!PyArg_UnpackTuple(arguments, "throw", 1, 3, &type, &value, &traceback))
        return NULL;
    ((Operation *)self)->parked = 0;
    if (PyExceptionInstance_Check(type))
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else
        PyErr_SetObject(type, value == Py_None ? NULL : value);
    return NULL;
}

static PyObject *op_close(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    ((Operation *)self)->parked = 0;
    Py_RETURN_NONE;
}

static PyObject *op_unlink(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    Py_CLEAR(((Operation *)self)->message);
    Py_RETURN_NONE;
}

/* -- the type */

static int op_traverse(PyObject *self, visitproc visit, void *arg)
{
    Operation *op = (Operation *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(op->task);
    Py_VISIT(op->then);
    Py_VISIT(op->raise_cancel);
    Py_VISIT(op->message);
    Py_VISIT(op->state);
    Py_VISIT(op->buffer);
    Py_VISIT(op->buffers);
    Py_VISIT(op->pin);
    Py_VISIT(op->chunk);
    Py_VISIT(op->entry);
    return 0;
}

static int op_clear(PyObject *self)
{
    Operation *op = (Operation *)self;

    Py_CLEAR(op->task);
    Py_CLEAR(op->then);
    Py_CLEAR(op->raise_cancel);
    Py_CLEAR(op->message);
    Py_CLEAR(op->state);
    Py_CLEAR(op->buffer);
    Py_CLEAR(op->buffers);
    Py_CLEAR(op->pin);
    Py_CLEAR(op->chunk);
    Py_CLEAR(op->entry);
    return 0;
}

static void op_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc free_it = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(self);
    op_clear(self);
    free_it(self);
    Py_DECREF(type);
}

static PyMemberDef op_members[] = {
    {"task", T_OBJECT, offsetof(Operation, task), 0, NULL},
    {"then", T_OBJECT, offsetof(Operation, then), 0, NULL},
    {"raise_cancel", T_OBJECT, offsetof(Operation, raise_cancel), 0, NULL},
    {"state", T_OBJECT, offsetof(Operation, state), 0, NULL},
    {"buffer", T_OBJECT, offsetof(Operation, buffer), 0, NULL},
    {"buffers", T_OBJECT, offsetof(Operation, buffers), 0, NULL},
    {"pin", T_OBJECT, offsetof(Operation, pin), 0, NULL},
    {"chunk", T_OBJECT, offsetof(Operation, chunk), 0, NULL},
    {"entry", T_OBJECT, offsetof(Operation, entry), 0, NULL},
    {"entry_at", T_ULONGLONG, offsetof(Operation, entry_at), 0, NULL},
    {"token", T_LONGLONG, offsetof(Operation, token), 0, NULL},
    {"start", T_PYSSIZET, offsetof(Operation, start), 0, NULL},
    {"length", T_PYSSIZET, offsetof(Operation, length), 0, NULL},
    {"born", T_DOUBLE, offsetof(Operation, born), 0, NULL},
    {"opcode", T_INT, offsetof(Operation, opcode), 0, NULL},
    {"res", T_INT, offsetof(Operation, res), 0, NULL},
    {"owed", T_BOOL, offsetof(Operation, owed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef op_methods[] = {
    {"unwrap", op_unwrap, METH_NOARGS, "The result, once: trio asks when the task resumes."},
    {"finish", op_finish, METH_NOARGS, "It is done, or never will be. True: a task was woken."},
    {"unlink", op_unlink, METH_NOARGS, "Ends the circle of the operation and its message."},
    {"send", op_send, METH_O, NULL},
    {"throw", op_throw, METH_VARARGS, NULL},
    {"close", op_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot op_slots[] = {
    {Py_tp_doc, "The part of an operation that C uses, and what awaiting it does."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, op_dealloc},
    {Py_tp_traverse, op_traverse},
    {Py_tp_clear, op_clear},
    {Py_tp_members, op_members},
    {Py_tp_methods, op_methods},
    {Py_am_await, op_await},
    {Py_am_send, op_am_send},
    {Py_tp_iter, op_await},
    {Py_tp_iternext, op_iternext},
    {0, NULL},
};

static PyType_Spec op_spec = {
    "trio_uring._hot.Operation", sizeof(Operation), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, op_slots,
};

/* -- the ring's part: writing an entry, and taking completions */

typedef int (*write_entry)(void *ring, void *entry, void *at, unsigned length, uint64_t token);

typedef struct {
    PyObject_HEAD
    PyObject *table;        /* what is in flight: token -> operation */
    PyObject *submitted;    /* counts, by opcode */
    PyObject *moved;        /* sums of the results > 0, by opcode */
    PyObject *counters;
    PyObject *starts;       /* where in the provided memory each buffer begins, in bytes */
    unsigned long long provided_at, ring_at, write_at, out_at; /* addresses; 0: there is none */
    double now;             /* seconds; it stamps Operation.born */
    long long token;        /* the last one that was given */
    int unsubmitted;        /* entries that are written and not submitted */
    int submit_max;         /* of these, until `submit` refuses more */
} Ring;

#define WATCH (1LL << 62)   /* the token of the watched descriptor: see _ring/base.py */
#define CQE_F_BUFFER 1
#define CQE_F_MORE 2
#define BUFFER_SHIFT 16

static int add_to(PyObject *counts, int index, long long amount)
{
    PyObject *before = PyList_GetItem(counts, index), *after;

    if (before == NULL)
        return -1;
    after = PyLong_FromLongLong(PyLong_AsLongLong(before) + amount);
    return after == NULL ? -1 : PyList_SetItem(counts, index, after);
}

/* Takes over a reference. */
static void put(PyObject **field, PyObject *value)
{
    PyObject *before = *field;

    *field = value;
    Py_XDECREF(before);
}

/* What an entry points at, if C can tell: nothing, or bytes. -1: Python is to pin it. */
static int locate(Operation *op, char **at)
{
    if (op->buffers != NULL && op->buffers != Py_None)
        return -1;
    if (op->buffer == NULL || op->buffer == Py_None) {
        *at = NULL;
        return 0;
    }
    if (!PyBytes_CheckExact(op->buffer))
        return -1;
    *at = PyBytes_AsString(op->buffer) + op->start;
    return 0;
}

/* As `_submit` of _ring/base.py, which does what is not as usual. */
static PyObject *ring_submit(PyObject *self, PyObject *argument)
{
    Ring *ring = (Ring *)self;
    Operation *op = (Operation *)argument;
    PyObject *state, *token;
    char *at;

    if (!PyObject_TypeCheck(argument, operation_type) || ring->unsubmitted >= ring->submit_max
        || ring->ring_at == 0 || op->entry == NULL || op->entry == Py_None || locate(op, &at) < 0
        || op->length < 0 || op->length > UINT32_MAX)
        return PyObject_CallMethodObjArgs(self, s_submit, argument, NULL);
    state = PyObject_GetAttr(op->state, s_submitted);
    token = PyLong_FromLongLong(ring->token + 1);
    if (state == NULL || token == NULL || PyDict_SetItem(ring->table, token, argument) < 0) {
        Py_XDECREF(state);
        Py_XDECREF(token);
        return NULL;
    }
    Py_DECREF(token);
    op->token = ++ring->token;
    put(&op->state, state);
    if (op->buffer != NULL && op->buffer != Py_None) {
        Py_INCREF(op->buffer);
        put(&op->pin, op->buffer);
    }
    ((write_entry)(uintptr_t)ring->write_at)((void *)(uintptr_t)ring->ring_at,
                                             (void *)(uintptr_t)op->entry_at, at,
                                             (unsigned)op->length, (uint64_t)op->token);
    ring->unsubmitted++;
    op->born = ring->now;
    if (add_to(ring->submitted, op->opcode, 1) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

/* The operation of a token, taken out of the table. NULL without an exception: there is none. */
static Operation *take_from_table(Ring *ring, long long token)
{
    PyObject *key = PyLong_FromLongLong(token), *op;

    if (key == NULL)
        return NULL;
    op = PyDict_GetItemWithError(ring->table, key);
    if (op != NULL) {
        Py_INCREF(op);
        if (PyDict_DelItem(ring->table, key) < 0)
            Py_CLEAR(op);
    } else if (!PyErr_Occurred()) {
        PyErr_SetObject(PyExc_KeyError, key);
    }
    Py_DECREF(key);
    return (Operation *)op;
}

static int count_result(Ring *ring, Operation *op)
{
    PyObject *res, *counted;

    if (op->res > 0)
        return add_to(ring->moved, op->opcode, op->res);
    if (op->res == 0)
        return 0;
    res = PyLong_FromLong(op->res);
    counted = res == NULL ? NULL : PyObject_CallMethodObjArgs(
        ring->counters, s_count_failure, (PyObject *)op, res, NULL);
    Py_XDECREF(res);
    Py_XDECREF(counted);
    return counted == NULL ? -1 : 0;
}

/* The bytes that the kernel put into a provided buffer. */
static void copy_chunk(Ring *ring, Operation *op, unsigned id)
{
    PyObject *start = PySequence_GetItem(ring->starts, (Py_ssize_t)id), *chunk = NULL;

    if (start != NULL)
        chunk = PyBytes_FromStringAndSize(
            (const char *)(uintptr_t)ring->provided_at + PyLong_AsSsize_t(start), op->res);
    Py_XDECREF(start);
    if (chunk == NULL) { /* this stream's bytes are lost, and it is told so; the others go on */
        PyErr_Clear();
        op->res = -ENOMEM;
    } else {
        put(&op->chunk, chunk);
    }
}

/* One completion of an operation. The list has it first: from then on it is the caller's. */
static int collect_one(Ring *ring, long long token, int res, unsigned flags, PyObject *done)
{
    Operation *op = take_from_table(ring, token);
    PyObject *state;
    int result = -1;

    if (op == NULL)
        return -1;
    state = PyObject_GetAttr(op->state, s_done);
    if (PyList_Append(done, (PyObject *)op) == 0 && state != NULL) {
        op->res = res;
        put(&op->state, state);
        state = NULL;
        Py_CLEAR(op->pin); /* S3, see _ring/base.py */
        Py_CLEAR(op->buffer);
        Py_CLEAR(op->buffers);
        if (flags & CQE_F_BUFFER && res >= 0)
            copy_chunk(ring, op, flags >> BUFFER_SHIFT);
        result = count_result(ring, op);
    }
    Py_XDECREF(state);
    Py_DECREF(op);
    return result;
}

static int take_own(PyObject *ring, long long token, int res)
{
    PyObject *taken = PyObject_CallMethod(ring, "_take_own", "Li", token, res);

    Py_XDECREF(taken);
    return taken == NULL ? -1 : 0;
}

/* collect(count, done): takes `count` completions out of the memory at `out_at`, where tu_turn has
 * put them: token, res and flags of each. Returns the token of one that announces more. */
static PyObject *ring_collect(PyObject *self, PyObject *arguments)
{
    Ring *ring = (Ring *)self;
    const int64_t *out = (const int64_t *)(uintptr_t)ring->out_at + 2;
    long long promised = 0;
    PyObject *done;
    int count, result = 0;

    if (!PyArg_ParseTuple(arguments, "iO:collect", &count, &done))
        return NULL;
    for (int i = 0; i < count && result == 0; i++, out += 3) {
        if (out[0] < 0 || out[0] == WATCH)
            result = take_own(self, out[0], (int)out[1]);
        else if (out[2] & CQE_F_MORE)
            promised = out[0]; /* it stays in the table, pinned: the kernel has not done with it */
        else
            result = collect_one(ring, out[0], (int)out[1], (unsigned)out[2], done);
    }
    return result < 0 ? NULL : PyLong_FromLongLong(promised);
}

/* write_all(ring, queue): submits what is queued, in order, and takes it out of the queue. False:
 * something was not taken, or is at fault; Python goes on from there, and finds it out again. */
static PyObject *write_all(PyObject *module, PyObject *arguments)
{
    PyObject *ring, *queue, *ops;
    int all = 1;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO:write_all", &ring, &queue))
        return NULL;
    /* A garbage collection in between may destroy a coroutine, and withdraw its operation. */
    ops = PyDict_Keys(queue);
    if (ops == NULL)
        return NULL;
    for (Py_ssize_t i = 0; all && i < PyList_Size(ops); i++) {
        PyObject *op = PyList_GetItem(ops, i), *taken;

        if (PyDict_Contains(queue, op) != 1)
            continue;
        taken = PyObject_CallMethodObjArgs(ring, s_submit_whole, op, NULL);
        all = taken == Py_True;
        Py_XDECREF(taken);
        if (all && PyDict_Contains(queue, op) == 1 && PyDict_DelItem(queue, op) < 0)
            all = 0;
    }
    Py_DECREF(ops);
    PyErr_Clear();
    return PyBool_FromLong(all);
}

static PyObject *finish_all(PyObject *module, PyObject *done)
{
    int woke = 0;

    (void)module;
    for (Py_ssize_t i = 0; i < PyList_Size(done); i++) { /* its length may not change meanwhile */
        PyObject *op = PyList_GetItem(done, i), *finished;

        if (op == NULL)
            return NULL;
        Py_INCREF(op);
        finished = PyObject_TypeCheck(op, operation_type)
            ? op_finish(op, NULL) : PyObject_CallMethod(op, "finish", NULL);
        Py_DECREF(op);
        if (finished == NULL)
            return NULL;
        woke |= finished == Py_True;
        Py_DECREF(finished);
    }
    return PyBool_FromLong(woke);
}

static int ring_traverse(PyObject *self, visitproc visit, void *arg)
{
    Ring *ring = (Ring *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(ring->table);
    Py_VISIT(ring->submitted);
    Py_VISIT(ring->moved);
    Py_VISIT(ring->counters);
    Py_VISIT(ring->starts);
    return 0;
}

static int ring_clear(PyObject *self)
{
    Ring *ring = (Ring *)self;

    Py_CLEAR(ring->table);
    Py_CLEAR(ring->submitted);
    Py_CLEAR(ring->moved);
    Py_CLEAR(ring->counters);
    Py_CLEAR(ring->starts);
    return 0;
}

static void ring_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc free_it = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(self);
    ring_clear(self);
    free_it(self);
    Py_DECREF(type);
}

static PyMemberDef ring_members[] = {
    {"table", T_OBJECT_EX, offsetof(Ring, table), 0, NULL},
    {"_submitted", T_OBJECT_EX, offsetof(Ring, submitted), 0, NULL},
    {"_moved", T_OBJECT_EX, offsetof(Ring, moved), 0, NULL},
    {"counters", T_OBJECT_EX, offsetof(Ring, counters), 0, NULL},
    {"_starts", T_OBJECT_EX, offsetof(Ring, starts), 0, NULL},
    {"_provided_at", T_ULONGLONG, offsetof(Ring, provided_at), 0, NULL},
    {"_ring_at", T_ULONGLONG, offsetof(Ring, ring_at), 0, NULL},
    {"_write_at", T_ULONGLONG, offsetof(Ring, write_at), 0, NULL},
    {"_out_at", T_ULONGLONG, offsetof(Ring, out_at), 0, NULL},
    {"now", T_DOUBLE, offsetof(Ring, now), 0, NULL},
    {"_token", T_LONGLONG, offsetof(Ring, token), 0, NULL},
    {"_unsubmitted", T_INT, offsetof(Ring, unsubmitted), 0, NULL},
    {"_submit_max", T_INT, offsetof(Ring, submit_max), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef ring_methods[] = {
    {"submit", ring_submit, METH_O, "Pins and queues an operation. False: no room now."},
    {"_collect_out", ring_collect, METH_VARARGS, "Takes completions out of the ring's memory."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "The part of a ring that C uses."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_traverse, ring_traverse},
    {Py_tp_clear, ring_clear},
    {Py_tp_members, ring_members},
    {Py_tp_methods, ring_methods},
    {0, NULL},
};

static PyType_Spec ring_spec = {
    "trio_uring._hot.Ring", sizeof(Ring), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, ring_slots,
};

/* -- the module */

static PyTypeObject *slot_type; /* of a descriptor of a slot */

static PyObject *get_dotted(PyObject *module, const char *owner, const char *name)
{
    PyObject *found = PyObject_GetAttrString(module, owner), *descriptor = NULL;

    if (found != NULL)
        descriptor = PyObject_GetAttrString(found, name);
    Py_XDECREF(found);
    if (descriptor != NULL && Py_TYPE(descriptor) != slot_type) {
        PyErr_Format(PyExc_AttributeError, "trio's %s.%s is no slot", owner, name);
        Py_CLEAR(descriptor);
    }
    return descriptor;
}

/* This type's own members have descriptors of the type that slots have. */
static int find_slot_type(PyObject *operation)
{
    PyObject *res = PyObject_GetAttrString(operation, "res");

    if (res == NULL)
        return -1;
    slot_type = Py_TYPE(res);
    descriptor_get = (descrgetfunc)PyType_GetSlot(slot_type, Py_tp_descr_get);
    slot_set = (descrsetfunc)PyType_GetSlot(slot_type, Py_tp_descr_set);
    Py_DECREF(res);
    return 0;
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
    };

    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        *wanted[i].into = get_dotted(run, wanted[i].owner, wanted[i].name);
        if (*wanted[i].into == NULL)
            return -1;
    }
    return 0;
}

static int make_names(void)
{
    const struct {
        PyObject **into;
        const char *name;
    } wanted[] = {
        {&s_abort, "abort"},   {&s_unwrap, "unwrap"}, {&s_send, "send"},
        {&s_append, "append"}, {&s_data, "data"},     {&s_call, "call"},
        {&s_submitted, "submitted"}, {&s_done, "done"}, {&s_in_kernel, "in_kernel"},
        {&s_count_failure, "count_failure"}, {&s_submit, "_submit"},
        {&s_submit_whole, "submit"},
        {&s_task_scheduled, "task_scheduled"}, {&s_reschedule, "reschedule"},
    };

    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        *wanted[i].into = PyUnicode_InternFromString(wanted[i].name);
        if (*wanted[i].into == NULL)
            return -1;
    }
    return 0;
}

static int add_types(PyObject *module, PyObject *operation)
{
    PyObject *ring = PyType_FromSpec(&ring_spec);

    if (ring == NULL)
        return -1;
    Py_INCREF(operation); /* operation_type keeps one */
    if (PyModule_AddObject(module, "Operation", operation) < 0) {
        Py_DECREF(operation);
        Py_DECREF(ring);
        return -1;
    }
    if (PyModule_AddObject(module, "Ring", ring) < 0) {
        Py_DECREF(ring);
        return -1;
    }
    return 0;
}

static int add_all(PyObject *module)
{
    PyObject *run = PyImport_ImportModule("trio._core._run"), *traps = NULL, *type;
    int result = -1;

    if (run != NULL)
        traps = PyImport_ImportModule("trio._core._traps");
    if (traps != NULL)
        message_type = PyObject_GetAttrString(traps, "WaitTaskRescheduled");
    type = message_type == NULL ? NULL : PyType_FromSpec(&op_spec);
    if (type != NULL) {
        operation_type = (PyTypeObject *)type;
        if (make_names() == 0 && find_slot_type(type) == 0 && find_slots(run) == 0)
            result = add_types(module, type);
    }
    Py_XDECREF(run);
    Py_XDECREF(traps);
    return result;
}

static PyMethodDef module_methods[] = {
    {"write_all", write_all, METH_VARARGS, "Submits what is queued. False: not all of it."},
    {"finish_all", finish_all, METH_O, "Finishes operations; True: a task was woken."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "trio_uring._hot", NULL, -1, module_methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__hot(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL && add_all(module) < 0)
        Py_CLEAR(module);
    return module;
}
