/* A ring: writes the entries of operations, and takes their completions.
 *
 * Rules of this file: S1 to S7 of _ring/base.py. What `submit` cannot do, Python's `_submit` does.
 */
#include "hot.h"

#include <string.h>

PyTypeObject *ring_type;

static PyObject *s_count_failure, *s_submit, *s_submit_whole;

/* -- the ring's part: writing an entry, and taking completions */

typedef int (*write_entry)(void *ring, void *entry, void *at, unsigned length, uint64_t token);

#define WATCH (1LL << 62)   /* the token of the watched descriptor: see _ring/base.py */
#define CQE_F_BUFFER 1
#define CQE_F_MORE 2
#define BUFFER_SHIFT 16
#define FEW 64              /* completions that are copied to the stack */

int add_to(PyObject *counts, int index, long long amount)
{
    PyObject *before = PyList_GetItem(counts, index), *after;

    if (before == NULL)
        return -1;
    after = PyLong_FromLongLong(PyLong_AsLongLong(before) + amount);
    return after == NULL ? -1 : PyList_SetItem(counts, index, after);
}

static int put_into_table(Ring *ring, Operation *op)
{
    PyObject *token = PyLong_FromLongLong(op->token);
    int result = token == NULL ? -1 : PyDict_SetItem(ring->table, token, (PyObject *)op);

    Py_XDECREF(token);
    return result;
}

/* Pins and writes an operation that counts as in the kernel already: a garbage collection while it
 * is being pinned may destroy its task's coroutine. 1: done; 0: Python has to try; -1: an error. */
static int write_pinned(Ring *ring, Operation *op)
{
    unsigned length;
    char *at;
    PyObject *pinned = pin(op, &at, &length);

    if (pinned == NULL)
        return 0;
    /* All that can fail comes first: once the entry is written, the kernel has the operation. */
    if (add_to(ring->submitted, op->opcode, 1) < 0 || put_into_table(ring, op) < 0) {
        Py_DECREF(pinned);
        return -1;
    }
    put(&op->pin, pinned);
    ((write_entry)(uintptr_t)ring->write_at)((void *)(uintptr_t)ring->ring_at,
                                             (void *)(uintptr_t)op->entry_at, at, length,
                                             (uint64_t)op->token);
    ring->unsubmitted++;
    op->born = ring->now;
    return 1;
}

/* As `_submit` of _ring/base.py, which does what is unusual. */
static PyObject *ring_submit(PyObject *self, PyObject *argument)
{
    Ring *ring = (Ring *)self;
    Operation *op = (Operation *)argument;
    PyObject *before, *state;
    int written;

    if (!PyObject_TypeCheck(argument, operation_type) || ring->unsubmitted >= ring->submit_max
        || ring->ring_at == 0 || is_none(op->entry) || op->entry_at == 0 || op->state == NULL)
        return PyObject_CallMethodObjArgs(self, s_submit, argument, NULL);
    state = submitted_after(op->state);
    if (state == NULL)
        return NULL;
    before = op->state;
    op->state = state;
    op->token = ++ring->token;
    written = write_pinned(ring, op);
    if (written == 1) {
        Py_DECREF(before);
        Py_RETURN_TRUE;
    }
    put(&op->state, before);
    return written < 0 ? NULL : PyObject_CallMethodObjArgs(self, s_submit, argument, NULL);
}

/* The operation of a token, taken out of the table; KeyError: there is none. */
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

int count_failure(PyObject *counters, Operation *op)
{
    PyObject *res = PyLong_FromLong(op->res), *counted = NULL;

    if (res != NULL)
        counted = PyObject_CallMethodObjArgs(counters, s_count_failure, (PyObject *)op, res, NULL);
    Py_XDECREF(res);
    Py_XDECREF(counted);
    return counted == NULL ? -1 : 0;
}

static int count_result(Ring *ring, Operation *op)
{
    if (op->res > 0)
        return add_to(ring->moved, op->opcode, op->res);
    return op->res < 0 ? count_failure(ring->counters, op) : 0;
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
    state = done_after(op->state);
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

static int check_promised(PyObject *ring, long long promised)
{
    PyObject *checked;

    if (!promised)
        return 0;
    checked = PyObject_CallMethod(ring, "_check_promised", "L", promised);
    Py_XDECREF(checked);
    return checked == NULL ? -1 : 0;
}

/* Takes completions: token, res and flags of each. */
static int collect_each(Ring *ring, int count, const int64_t *out, PyObject *done)
{
    long long promised = 0;
    int result = 0;

    for (int i = 0; i < count && result == 0; i++, out += 3) {
        if (out[0] < 0 || out[0] == WATCH)
            result = take_own((PyObject *)ring, out[0], (int)out[1]);
        else if (out[2] & CQE_F_MORE)
            promised = out[0]; /* it stays in the table, pinned: the kernel still uses it */
        else
            result = collect_one(ring, out[0], (int)out[1], (unsigned)out[2], done);
    }
    return result < 0 ? -1 : check_promised((PyObject *)ring, promised);
}

/* Takes completions out of the memory at `out_at`, where tu_turn has put them. They are copied:
 * when a buffer is let go, or Python called, a destructor may close a stream, which drains the
 * ring. */
int collect_all(Ring *ring, int count, PyObject *done)
{
    int64_t few[3 * FEW], *copy = few;
    size_t bytes = 3 * sizeof *copy * (size_t)count;
    int result;

    if (count > FEW && (copy = PyMem_Malloc(bytes)) == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    memcpy(copy, (const int64_t *)(uintptr_t)ring->out_at + 2, bytes);
    result = collect_each(ring, count, copy, done);
    if (copy != few)
        PyMem_Free(copy);
    return result;
}

static PyObject *ring_collect(PyObject *self, PyObject *arguments)
{
    PyObject *done;
    int count;

    if (!PyArg_ParseTuple(arguments, "iO!:_collect_out", &count, &PyList_Type, &done)
        || collect_all((Ring *)self, count, done) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Submits an operation, and takes it out of the queue, if it is there still. 0: not taken. */
static int write_one(Ring *ring, PyObject *queue, PyObject *op)
{
    PyObject *taken;
    int was_taken;

    if (PyDict_Contains(queue, op) != 1)
        return 1;
    taken = PyObject_CallMethodObjArgs((PyObject *)ring, s_submit_whole, op, NULL);
    was_taken = taken == Py_True;
    Py_XDECREF(taken);
    return was_taken && (PyDict_Contains(queue, op) != 1 || PyDict_DelItem(queue, op) == 0);
}

/* Submits what is queued, in order, and takes it out of the queue. 0: something was not taken, or
 * is at fault. Python goes on from there, and finds out what. -1: an exception that is no fault of
 * an operation: it comes from the handler of a signal. */
int write_queue(Ring *ring, PyObject *queue)
{
    PyObject *ops = PyDict_Keys(queue); /* a garbage collection may withdraw some */
    int all = ops != NULL;

    for (Py_ssize_t i = 0; all && i < PyList_Size(ops); i++)
        all = write_one(ring, queue, PyList_GetItem(ops, i));
    Py_XDECREF(ops);
    if (!all && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return -1;
        PyErr_Clear();
    }
    return all;
}

PyObject *write_queue_of(PyObject *module, PyObject *arguments)
{
    PyObject *ring, *queue;
    int written;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO!:write_queue", &ring, &PyDict_Type, &queue))
        return NULL;
    /* One of somebody else's class is asked by Python. */
    written = PyObject_TypeCheck(ring, ring_type) ? write_queue((Ring *)ring, queue) : 0;
    return written < 0 ? NULL : PyBool_FromLong(written);
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
    Py_VISIT(ring->late_cancels);
    Py_VISIT(ring->missed);
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
    Py_CLEAR(ring->late_cancels);
    Py_CLEAR(ring->missed);
    return 0;
}

static void ring_dealloc(PyObject *self)
{
    free_tracked(self, ring_clear);
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
    {"enters", T_LONGLONG, offsetof(Ring, enters), 0, NULL},
    {"completions", T_LONGLONG, offsetof(Ring, completions), 0, NULL},
    {"_token", T_LONGLONG, offsetof(Ring, token), 0, NULL},
    {"_late_cancels", T_OBJECT_EX, offsetof(Ring, late_cancels), 0, NULL},
    {"_missed", T_OBJECT_EX, offsetof(Ring, missed), 0, NULL},
    {"_turn_at", T_ULONGLONG, offsetof(Ring, turn_at), 0, NULL},
    {"_more_at", T_ULONGLONG, offsetof(Ring, more_at), 0, NULL},
    {"watching", T_BOOL, offsetof(Ring, watching), 0, NULL},
    {"watched", T_BOOL, offsetof(Ring, watched), 0, NULL},
    {"short", T_BOOL, offsetof(Ring, is_short), 0, NULL},
    {"_more_work", T_BOOL, offsetof(Ring, more_work), 0, NULL},
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


int make_ring_type(void)
{
    const Name names[] = {
        {&s_count_failure, "count_failure"}, {&s_submit, "_submit"}, {&s_submit_whole, "submit"},
    };

    if (make_names(names, COUNT(names)) < 0)
        return -1;
    ring_type = (PyTypeObject *)PyType_FromSpec(&ring_spec);
    return ring_type == NULL ? -1 : 0;
}
