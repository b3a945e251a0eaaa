/* How a call of a stream begins, and what it returns.
 *
 * Rules of this file: `begin` changes nothing unless it goes all the way. What it checks is what
 * `Direction.take` and `Engine.perform` check; what it does not understand is unusual.
 */
#include "hot.h"

#define SEND_MAX (1 << 30)    /* bytes, as in _bytes/outgoing.py, like the next two */
#define IOV_MAX_ 1024
#define VECTOR_BYTES_MAX (1 << 22)
#define SMALL_SIZE 4096       /* as in _ring/figures.py */
#define LARGE_GROUP 1         /* as in _ring/op.py, like the next one */
#define NO_GROUP (-1)

PyObject *running; /* the phase in which operations begin */
PyObject *adapt;   /* of _descriptors/provided.py */

static PyObject *keys[KINDS], *empty, *s_receiving, *s_sending;

/* -- beginning */

/* Whether the descriptor has still the number that it had. -1: an exception. */
static int is_same_number(Direction *way)
{
    PyObject *number = PyObject_CallNoArgs(way->fileno);
    long fd = number == NULL ? -1 : PyLong_AsLong(number);

    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : fd == way->fd;
}

static int is_free(Direction *way)
{
    return !way->held && !way->ended && is_none(way->waiter) && is_none(way->left)
        && is_none(way->kept);
}

/* The direction, if nobody has it and nothing has to be done first. NULL: unusual, or an error. */
static Direction *find_way(Call *call)
{
    PyObject *way = PyObject_GetAttr(call->stream,
                                     call->kind == RECEIVE ? s_receiving : s_sending);

    if (way == NULL)
        return NULL;
    if (PyObject_TypeCheck(way, direction_type) && is_same_number((Direction *)way) > 0
        && is_free((Direction *)way))
        return (Direction *)way;
    Py_DECREF(way);
    return NULL;
}

/* The engine of an operation, if it can begin here and now, by a completion, without more ado. */
static Engine *find_engine(Operation *op)
{
    Engine *engine = (Engine *)op->engine;
    PyObject *opcode;
    int by_call;

    if (op->engine == NULL || !PyObject_TypeCheck(op->engine, engine_type)
        || engine->phase != running || engine->thread != PyThread_get_thread_ident()
        || (!is_none(engine->hooks) && PyDict_Size(engine->queue) == 0))
        return NULL;
    opcode = PyLong_FromLong(op->opcode);
    by_call = opcode == NULL ? -1 : PySet_Contains(engine->by_calls, opcode);
    Py_XDECREF(opcode);
    return by_call == 0 ? engine : NULL;
}

static Operation *find_operation(Direction *way, int kind)
{
    PyObject *op = PyDict_GetItemWithError(way->operations, keys[kind]);

    if (op == NULL || !PyObject_TypeCheck(op, operation_type) || ((Operation *)op)->owed
        || (kind == RECEIVE && ((Operation *)op)->group == NO_GROUP))
        return NULL;
    return (Operation *)op;
}

/* The bytes of a list or tuple of bytes objects. 0: it is something else, or too large. */
static Py_ssize_t plain_length(PyObject *data)
{
    int is_list = PyList_CheckExact(data);
    Py_ssize_t count = is_list ? PyList_Size(data) : PyTuple_Size(data), length = 0;

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = is_list ? PyList_GetItem(data, i) : PyTuple_GetItem(data, i);

        if (!PyBytes_CheckExact(item))
            return 0;
        length += PyBytes_Size(item);
    }
    return count <= IOV_MAX_ && length <= VECTOR_BYTES_MAX ? length : 0;
}

/* Looks at what is to be sent. 0: it is unusual. */
static int look_at_data(Call *call)
{
    if (PyBytes_CheckExact(call->data)) {
        call->kind = SEND;
        call->length = PyBytes_Size(call->data);
    } else if (PyList_CheckExact(call->data) || PyTuple_CheckExact(call->data)) {
        call->kind = SEND_MANY;
        call->length = plain_length(call->data);
    } else {
        return 0;
    }
    return call->length > 0 && call->length <= SEND_MAX;
}

/* Says to the operation what it moves. */
static int load(Call *call, Direction *way, Operation *op)
{
    PyObject *whole;

    if (call->kind == RECEIVE) {
        op->length = way->size < call->length ? way->size : call->length;
        return 0;
    }
    if (call->kind == SEND_MANY) {
        whole = PySequence_Tuple(call->data); /* the list may change while the operation waits */
        if (whole == NULL)
            return -1;
        put(&op->buffers, whole);
        Py_INCREF(whole);
        put(&call->data, whole);
    } else {
        Py_INCREF(call->data);
        put(&op->buffer, call->data);
    }
    op->start = 0;
    op->length = call->length;
    way->sent = 0;
    return 0;
}

/* Takes the direction and queues the operation. 1: done; 0: unusual, and Python's; -1: an error. */
int begin(Call *call)
{
    Direction *way;
    Operation *op;
    Engine *engine;
    PyObject *task;

    if (call->kind != RECEIVE && !look_at_data(call))
        return 0;
    way = find_way(call);
    op = way == NULL ? NULL : find_operation(way, call->kind);
    engine = op == NULL ? NULL : find_engine(op);
    task = engine == NULL ? NULL : current_task();
    if (task == NULL) {
        Py_XDECREF(way);
        return PyErr_Occurred() ? -1 : 0;
    }
    put(&op->task, task);
    Py_INCREF(op);
    call->way = way;
    call->op = op;
    if (load(call, way, op) < 0 || PyDict_SetItem(engine->queue, (PyObject *)op, Py_None) < 0) {
        Py_CLEAR(op->task);
        return -1;
    }
    op->owed = 1;
    way->held = 1;
    return 1;
}

/* -- the end */

/* Calls Python to choose other buffers, if the size of what came asks for it. */
static int adapt_buffers(Direction *way, Operation *op)
{
    PyObject *adapted;
    int usual = op->group == LARGE_GROUP ? op->res > SMALL_SIZE && way->streak == 0
                                         : op->res != SMALL_SIZE;

    if (usual)
        return 0;
    adapted = PyObject_CallFunction(adapt, "OOi", (PyObject *)way, (PyObject *)op, op->res);
    Py_XDECREF(adapted);
    return adapted == NULL ? -1 : 0;
}

static PyObject *end_receive(Call *call, PyObject **rest)
{
    Operation *op = call->op;
    PyObject *chunk;

    if (op->res < 0) {
        *rest = PyObject_CallFunction(of_receive.rest, "OOn", call->stream, (PyObject *)op,
                                      call->length);
        return NULL;
    }
    if (adapt_buffers(call->way, op) < 0)
        return NULL;
    chunk = op->chunk;
    op->chunk = NULL;
    if (!is_none(chunk))
        return chunk;
    Py_XDECREF(chunk);
    Py_INCREF(empty);
    return empty;
}

/* What the call returns; or NULL, and in `rest` the coroutine that does the rest, or an error. */
PyObject *end(Call *call, PyObject **rest)
{
    Operation *op = call->op;

    if (call->kind == RECEIVE)
        return end_receive(call, rest);
    call->way->sent = op->res > 0 ? op->res : 0;
    if (op->res != call->length) {
        *rest = PyObject_CallFunctionObjArgs(of_send.rest, call->stream, call->data,
                                             (PyObject *)op, NULL);
        return NULL;
    }
    Py_INCREF(Py_None);
    return Py_None;
}

int make_streams(void)
{
    const Name names[] = {{&s_receiving, "_receiving"}, {&s_sending, "_sending"}};

    for (int kind = 0; kind < KINDS; kind++)
        if ((keys[kind] = PyLong_FromLong(kind)) == NULL)
            return -1;
    empty = PyBytes_FromStringAndSize(NULL, 0);
    return empty == NULL ? -1 : make_names(names, COUNT(names));
}
