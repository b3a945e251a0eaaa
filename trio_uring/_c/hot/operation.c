/* An operation: its fields, its result, and what awaiting it does.
 *
 * An operation is itself what its task awaits. Awaiting it yields trio's own message for "parked",
 * and `finish`, called for its completion, puts the task back into trio's queue. It is its own
 * outcome: trio calls `unwrap` when the task resumes.
 *
 * Rules of this file: as in _driver/operation.py, a completion does what `finish` says, once.
 */
#include "hot.h"

PyTypeObject *operation_type;

static PyObject *s_abort, *s_unwrap;

/* -- an operation's result */

/* -- its states, see _ring/op.py */

static PyObject *state_new, *state_submitted, *state_cancelling, *state_done;
static PyObject *s_submitted, *s_done;

/* use_states(NEW, SUBMITTED, CANCELLING, DONE) */
PyObject *use_states(PyObject *module, PyObject *arguments)
{
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOO:use_states", &state_new, &state_submitted,
                          &state_cancelling, &state_done))
        return NULL;
    Py_INCREF(arguments); /* for ever, and so the states */
    Py_RETURN_NONE;
}

static PyObject *new_reference(PyObject *object)
{
    Py_INCREF(object);
    return object;
}

/* The state after this step, or an exception: `state.submitted`. */
PyObject *submitted_after(PyObject *state)
{
    if (state == state_new || state == state_done)
        return new_reference(state_submitted);
    return PyObject_GetAttr(state, s_submitted);
}

/* The same: `state.done`. */
PyObject *done_after(PyObject *state)
{
    if (state == state_submitted || state == state_cancelling)
        return new_reference(state_done);
    return PyObject_GetAttr(state, s_done);
}

/* Whether the kernel may still have it: `op.state.in_kernel`. */
int is_in_kernel(Operation *op)
{
    return op->state == state_submitted || op->state == state_cancelling;
}

static int raise_from(PyObject *raise_cancel)
{
    PyObject *raised = PyObject_CallFunctionObjArgs(raise_cancel, NULL);

    if (raised != NULL) {
        Py_DECREF(raised);
        PyErr_SetString(PyExc_RuntimeError, "raise_cancel has returned");
    }
    return -1;
}

/* Takes the result, `op->res`. -1: an exception, of a cancellation or a refusal. */
int take_result(Operation *op)
{
    PyObject *raise_cancel = op->raise_cancel;
    int result = 0;

    if (is_none(raise_cancel)) {
        op->owed = 0;
        return 0;
    }
    /* If the driver has failed, the task gets this before the kernel is done with it. */
    op->owed = (char)is_in_kernel(op);
    op->raise_cancel = NULL;
    if (op->res == -ECANCELED)
        result = raise_from(raise_cancel);
    Py_DECREF(raise_cancel);
    return result;
}

static PyObject *op_unwrap(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return take_result((Operation *)self) < 0 ? NULL : PyLong_FromLong(((Operation *)self)->res);
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
    result = reschedule(task, self, &op->sender);
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

PyObject *parked_message(Operation *op)
{
    PyObject *abort_func;

    if (op->message == NULL) {
        abort_func = PyObject_GetAttr((PyObject *)op, s_abort);
        if (abort_func == NULL)
            return NULL;
        op->message = PyObject_CallFunctionObjArgs(trio_message, abort_func, NULL);
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
    op->parked = 0;
    if (value != Py_None && value == self)
        *result = op_unwrap(self, NULL);
    else /* trio's own, if the abort has succeeded, or that of whoever drives this by hand */
        *result = PyObject_CallMethodObjArgs(value, s_unwrap, NULL);
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
    Operation *op = (Operation *)self;

    (void)ignored;
    Py_CLEAR(op->message);
    Py_CLEAR(op->sender.coro);
    Py_CLEAR(op->sender.send);
    Py_RETURN_NONE;
}

/* -- the type */

static int op_traverse(PyObject *self, visitproc visit, void *arg)
{
    Operation *op = (Operation *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(op->engine);
    Py_VISIT(op->task);
    Py_VISIT(op->then);
    Py_VISIT(op->raise_cancel);
    Py_VISIT(op->message);
    Py_VISIT(op->sender.coro);
    Py_VISIT(op->sender.send);
    Py_VISIT(op->state);
    Py_VISIT(op->buffer);
    Py_VISIT(op->buffers);
    Py_VISIT(op->memory);
    Py_VISIT(op->pin);
    Py_VISIT(op->chunk);
    Py_VISIT(op->entry);
    return 0;
}

static int op_clear(PyObject *self)
{
    Operation *op = (Operation *)self;

    Py_CLEAR(op->engine);
    Py_CLEAR(op->task);
    Py_CLEAR(op->then);
    Py_CLEAR(op->raise_cancel);
    Py_CLEAR(op->message);
    Py_CLEAR(op->sender.coro);
    Py_CLEAR(op->sender.send);
    Py_CLEAR(op->state);
    Py_CLEAR(op->buffer);
    Py_CLEAR(op->buffers);
    Py_CLEAR(op->memory);
    Py_CLEAR(op->pin);
    Py_CLEAR(op->chunk);
    Py_CLEAR(op->entry);
    return 0;
}

static void op_dealloc(PyObject *self)
{
    free_tracked(self, op_clear);
}

static PyMemberDef op_members[] = {
    {"engine", T_OBJECT, offsetof(Operation, engine), 0, NULL},
    {"task", T_OBJECT, offsetof(Operation, task), 0, NULL},
    {"then", T_OBJECT, offsetof(Operation, then), 0, NULL},
    {"raise_cancel", T_OBJECT, offsetof(Operation, raise_cancel), 0, NULL},
    {"state", T_OBJECT, offsetof(Operation, state), 0, NULL},
    {"buffer", T_OBJECT, offsetof(Operation, buffer), 0, NULL},
    {"buffers", T_OBJECT, offsetof(Operation, buffers), 0, NULL},
    {"memory", T_OBJECT, offsetof(Operation, memory), 0, NULL},
    {"pin", T_OBJECT, offsetof(Operation, pin), 0, NULL},
    {"chunk", T_OBJECT, offsetof(Operation, chunk), 0, NULL},
    {"entry", T_OBJECT, offsetof(Operation, entry), 0, NULL},
    {"entry_at", T_ULONGLONG, offsetof(Operation, entry_at), 0, NULL},
    {"token", T_LONGLONG, offsetof(Operation, token), 0, NULL},
    {"start", T_PYSSIZET, offsetof(Operation, start), 0, NULL},
    {"length", T_PYSSIZET, offsetof(Operation, length), 0, NULL},
    {"born", T_DOUBLE, offsetof(Operation, born), 0, NULL},
    {"opcode", T_INT, offsetof(Operation, opcode), 0, NULL},
    {"group", T_INT, offsetof(Operation, group), 0, NULL},
    {"res", T_INT, offsetof(Operation, res), 0, NULL},
    {"owed", T_BOOL, offsetof(Operation, owed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef op_methods[] = {
    {"unwrap", op_unwrap, METH_NOARGS, "The result, once: trio asks when the task resumes."},
    {"finish", op_finish, METH_NOARGS, "It is done, or never will be. True: a task was woken."},
    {"unlink", op_unlink, METH_NOARGS, "Breaks the cycle of the operation and its message."},
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

PyObject *finish_all(PyObject *module, PyObject *done)
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


int make_operation_type(void)
{
    const Name names[] = {
        {&s_abort, "abort"}, {&s_unwrap, "unwrap"}, {&s_submitted, "submitted"}, {&s_done, "done"},
    };

    if (make_names(names, COUNT(names)) < 0)
        return -1;
    operation_type = (PyTypeObject *)PyType_FromSpec(&op_spec);
    return operation_type == NULL ? -1 : 0;
}
