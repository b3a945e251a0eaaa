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

typedef struct {
    PyObject_HEAD
    PyObject *task;         /* waits for the completion */
    PyObject *then;         /* is called with the completion */
    PyObject *raise_cancel; /* of a cancellation that was asked for, or a refusal */
    PyObject *message;      /* WaitTaskRescheduled(self.abort); made once, unlinked by the owner */
    int res;                /* >= 0, or -errno */
    char owed;              /* a call has had it performed, and has not had the result */
    char parked;            /* between the yield and the task's resumption */
} Operation;

static PyObject *message_type, *s_abort, *s_unwrap, *s_send, *s_append, *s_data, *s_call;
static PyObject *s_task_scheduled, *s_state, *s_in_kernel, *s_reschedule;

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
    PyObject *state = PyObject_GetAttr(self, s_state), *flag = NULL;
    int result = -1;

    if (state != NULL)
        flag = PyObject_GetAttr(state, s_in_kernel);
    if (flag != NULL)
        result = PyObject_IsTrue(flag);
    Py_XDECREF(flag);
    Py_XDECREF(state);
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
    return 0;
}

static int op_clear(PyObject *self)
{
    Operation *op = (Operation *)self;

    Py_CLEAR(op->task);
    Py_CLEAR(op->then);
    Py_CLEAR(op->raise_cancel);
    Py_CLEAR(op->message);
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
        {&s_state, "state"},   {&s_in_kernel, "in_kernel"},
        {&s_task_scheduled, "task_scheduled"}, {&s_reschedule, "reschedule"},
    };

    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        *wanted[i].into = PyUnicode_InternFromString(wanted[i].name);
        if (*wanted[i].into == NULL)
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
        if (make_names() == 0 && find_slot_type(type) == 0 && find_slots(run) == 0)
            result = PyModule_AddObject(module, "Operation", type);
        if (result < 0)
            Py_DECREF(type);
    }
    Py_XDECREF(run);
    Py_XDECREF(traps);
    return result;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "trio_uring._hot", NULL, -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__hot(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL && add_all(module) < 0)
        Py_CLEAR(module);
    return module;
}
