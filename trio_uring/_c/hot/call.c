/* A call of a stream or socket, as an awaitable: what `await stream.receive_some()` awaits.
 *
 * It does what most calls are: take the direction, queue the operation, park, return the result.
 * Whatever is unusual, from the beginning (busy, closed, another thread, bytes that were kept) or
 * at the end (an error, a short write), it leaves to the coroutine functions in Python, which it
 * then awaits on behalf of its caller. So every rule about the unusual is written once, there.
 *
 *     FRESH   nothing was done: as with a coroutine, a call does nothing before it is awaited
 *     PARKED  it holds its direction, and waits for its operation
 *     LEFT    to a coroutine of Python, which has the direction, or will take it
 *     OVER    it has returned, raised, or was closed
 *
 * Rules of this file: a call that is destroyed gives its direction back, as the `finally` of the
 * Python does. The garbage collector is told of a call only when it is left to Python, whose
 * coroutine may refer to the task. While it is parked the only way back to its task is
 * `Operation.task`, which the end of a run clears.
 */
#include "hot.h"

enum { FRESH, PARKED, LEFT, OVER };

static PyTypeObject *call_type;

static PySendResult call_send(Call *, PyObject *, PyObject **);

static PyObject *s_leave, *s_unwrap, *s_close, *s_throw;

PyObject *make_call(Method *method, PyObject *owner, PyObject *data, Py_ssize_t length)
{
    Call *call = PyObject_GC_New(Call, call_type); /* and not tracked */

    if (call == NULL)
        return NULL;
    Py_INCREF(owner);
    Py_XINCREF(data);
    call->owner = owner;
    call->data = data;
    call->length = length;
    call->method = method;
    call->kind = method->kind;
    call->stage = FRESH;
    call->running = 0;
    call->wait = COMPLETION;
    call->inner = NULL;
    call->way = NULL;
    call->op = NULL;
    return (PyObject *)call;
}

/* It is over, and lets go of everything, as the frame of a coroutine does: the caller may resize
 * its buffer again. */
static int finish(PyObject *self)
{
    Call *call = (Call *)self;

    call->stage = OVER;
    Py_CLEAR(call->inner);
    Py_CLEAR(call->op);
    Py_CLEAR(call->way);
    Py_CLEAR(call->data);
    Py_CLEAR(call->owner);
    return 0;
}

/* Gives back the direction, and leaves to it what was not awaited to the end. */
static void give_back(Call *call)
{
    PyObject *type, *value, *traceback, *left;

    call->stage = OVER;
    if (!call->method->lent)
        call->way->held = 0;
    if (!call->op->owed) {
        Py_CLEAR(call->op->memory);
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    if (call->wait == READINESS)
        forget_wait(call);
    left = PyObject_CallMethodObjArgs((PyObject *)call->way, s_leave, (PyObject *)call->op, NULL);
    if (left == NULL)
        PyErr_WriteUnraisable((PyObject *)call->way);
    Py_XDECREF(left);
    PyErr_Restore(type, value, traceback);
}

/* Goes on with the coroutine that a function of Python has made; NULL: it has raised instead. */
static PySendResult leave_to(Call *call, PyObject *coroutine, PyObject **result)
{
    if (coroutine == NULL) {
        (void)finish((PyObject *)call);
        *result = NULL;
        return PYGEN_ERROR;
    }
    call->inner = coroutine;
    call->stage = LEFT;
    PyObject_GC_Track(call);
    return call_send(call, Py_None, result);
}

static PySendResult start(Call *call, PyObject *value, PyObject **result)
{
    int usual;

    if (value != Py_None) { /* it stays as it is */
        PyErr_SetString(PyExc_TypeError,
                        "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    }
    usual = begin(call, result);
    if (usual == 0)
        return leave_to(call, python_call(call), result);
    if (*result == NULL) {
        if (usual > 0)
            give_back(call);
        (void)finish((PyObject *)call);
        return PYGEN_ERROR;
    }
    call->stage = PARKED;
    return PYGEN_NEXT;
}

/* The outcome is the operation, but for two cases. It is trio's own if the abort has succeeded,
 * and raises Cancelled. And whoever drives the call by hand may have unwrapped the operation
 * already. */
static int take_outcome(Call *call, PyObject *outcome)
{
    PyObject *unwrapped;

    if (outcome == (PyObject *)call->op)
        return take_result(call->op);
    unwrapped = PyObject_CallMethodObjArgs(outcome, s_unwrap, NULL);
    if (unwrapped == NULL)
        return -1;
    Py_DECREF(unwrapped);
    if (!call->op->owed)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "a call was resumed that still waits for its operation");
    return -1;
}

static PySendResult resume(Call *call, PyObject *outcome, PyObject **result)
{
    PyObject *rest = NULL;
    int taken;

    *result = NULL;
    if (call->wait == COMPLETION)
        taken = take_outcome(call, outcome);
    else
        taken = resume_by_call(call, outcome, result);
    if (*result != NULL)
        return PYGEN_NEXT; /* it waits again */
    if (taken == 0)
        *result = end(call, &rest);
    if (rest != NULL)
        return leave_to(call, rest, result);
    give_back(call);
    (void)finish((PyObject *)call);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PySendResult go_on(Call *call, PyObject *value, PyObject **result)
{
    PySendResult sent = PyIter_Send(call->inner, value, result);

    if (sent != PYGEN_NEXT)
        (void)finish((PyObject *)call);
    return sent;
}

static PySendResult call_send(Call *call, PyObject *value, PyObject **result)
{
    switch (call->stage) {
    case FRESH:
        return start(call, value, result);
    case PARKED:
        return resume(call, value, result);
    case LEFT:
        return go_on(call, value, result);
    default:
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        *result = NULL;
        return PYGEN_ERROR;
    }
}

/* -- the type, which is a coroutine to whoever asks (collections.abc.Coroutine) */

/* Enters a call, and keeps it: what it calls may let go of it. 0: it is running already. */
static int enter_call(Call *call)
{
    if (call->running) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return 0;
    }
    Py_INCREF(call);
    call->running = 1;
    return 1;
}

static void exit_call(Call *call)
{
    call->running = 0;
    Py_DECREF(call);
}

static PySendResult call_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    PySendResult sent;

    *result = NULL;
    if (!enter_call((Call *)self))
        return PYGEN_ERROR;
    sent = call_send((Call *)self, value, result);
    exit_call((Call *)self);
    return sent;
}

static PyObject *call_await(PyObject *self)
{
    char stage = ((Call *)self)->stage;

    if (stage == PARKED || stage == LEFT) { /* what a second task sends would end the first one's */
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    Py_INCREF(self);
    return self;
}

static PyObject *call_method_send(PyObject *self, PyObject *value)
{
    PyObject *result = NULL, *stop;

    if (call_am_send(self, value, &result) != PYGEN_RETURN)
        return result;
    stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *call_iternext(PyObject *self)
{
    return call_method_send(self, Py_None);
}

static void raise_thrown(PyObject *type, PyObject *value)
{
    if (PyExceptionInstance_Check(type))
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else
        PyErr_SetObject(type, value == Py_None ? NULL : value);
}

static PyObject *throw_into(Call *call, PyObject *arguments)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL, *throw, *result = NULL;

    if (!PyArg_UnpackTuple(arguments, "throw", 1, 3, &type, &value, &traceback))
        return NULL;
    if (call->stage == LEFT) {
        throw = PyObject_GetAttr(call->inner, s_throw);
        result = throw == NULL ? NULL : PyObject_CallObject(throw, arguments);
        Py_XDECREF(throw);
    } else {
        if (call->stage == PARKED)
            give_back(call);
        raise_thrown(type, value);
    }
    if (result == NULL)
        (void)finish((PyObject *)call);
    return result;
}

static PyObject *call_throw(PyObject *self, PyObject *arguments)
{
    PyObject *result;

    if (!enter_call((Call *)self))
        return NULL;
    result = throw_into((Call *)self, arguments);
    exit_call((Call *)self);
    return result;
}

static PyObject *call_close(PyObject *self, PyObject *ignored)
{
    Call *call = (Call *)self;
    PyObject *closed = Py_None;

    (void)ignored;
    if (!enter_call(call))
        return NULL;
    Py_INCREF(closed);
    if (call->stage == PARKED)
        give_back(call);
    if (call->stage == LEFT)
        put(&closed, PyObject_CallMethodObjArgs(call->inner, s_close, NULL));
    if (closed != NULL)
        (void)finish(self);
    exit_call(call);
    return closed;
}

static int call_traverse(PyObject *self, visitproc visit, void *arg)
{
    Call *call = (Call *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(call->inner);
    Py_VISIT((PyObject *)call->op);
    Py_VISIT((PyObject *)call->way);
    Py_VISIT(call->data);
    Py_VISIT(call->owner);
    return 0;
}

static void call_dealloc(PyObject *self)
{
    Call *call = (Call *)self;
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    if (call->stage == PARKED)
        give_back(call);
    if (call->stage == FRESH)
        warn_never_awaited(call);
    (void)finish(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *call_name(PyObject *self, void *which)
{
    return name_of((Call *)self, which);
}

static PyGetSetDef call_names[] = {
    {"__name__", call_name, NULL, NULL, "__name__"},
    {"__qualname__", call_name, NULL, NULL, "__qualname__"},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef call_methods[] = {
    {"send", call_method_send, METH_O, NULL},
    {"throw", call_throw, METH_VARARGS, NULL},
    {"close", call_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_doc, "A call of a stream or socket, to be awaited."},
    {Py_tp_dealloc, call_dealloc},
    {Py_tp_traverse, call_traverse},
    {Py_tp_clear, finish},
    {Py_tp_methods, call_methods},
    {Py_tp_getset, call_names},
    {Py_am_await, call_await},
    {Py_am_send, call_am_send},
    {Py_tp_iter, call_await},
    {Py_tp_iternext, call_iternext},
    {0, NULL},
};

static PyType_Spec call_spec = {
    "trio_uring._hot.Call", sizeof(Call), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, call_slots,
};

int make_call_type(void)
{
    const Name names[] = {
        {&s_leave, "leave"}, {&s_unwrap, "unwrap"}, {&s_close, "close"}, {&s_throw, "throw"},
    };

    if (make_names(names, COUNT(names)) < 0)
        return -1;
    call_type = (PyTypeObject *)PyType_FromSpec(&call_spec);
    return call_type == NULL ? -1 : 0;
}
