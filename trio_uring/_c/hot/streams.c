/* How a call of a stream begins, and what it returns.
 *
 * Rules of this file: `begin` changes nothing unless it goes all the way. What it checks is what
 * `Direction.take` and `Engine.perform` check; what it does not understand is unusual.
 */
#include "hot.h"

#define LENGTH_MAX (1 << 30)  /* bytes: SEND_MAX of _bytes/outgoing.py, as the next two */
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
                                     call->kind <= INTO ? s_receiving : s_sending);

    if (way == NULL)
        return NULL;
    if (PyObject_TypeCheck(way, direction_type) && is_same_number((Direction *)way) > 0
        && is_free((Direction *)way))
        return (Direction *)way;
    Py_DECREF(way);
    return NULL;
}

/* Whether an operation can begin here and now, by a completion, without more ado. If not, there may
 * be an exception. */
static int can_begin(Operation *op)
{
    Engine *engine = (Engine *)op->engine;
    PyObject *opcode;
    int by_call;

    if (op->engine == NULL || !PyObject_TypeCheck(op->engine, engine_type)
        || engine->phase != running || engine->thread != PyThread_get_thread_ident()
        || (!is_none(engine->hooks) && PyDict_Size(engine->queue) == 0))
        return 0;
    opcode = PyLong_FromLong(op->opcode);
    by_call = opcode == NULL ? -1 : PySet_Contains(engine->by_calls, opcode);
    Py_XDECREF(opcode);
    return by_call == 0;
}

static Operation *find_operation(Direction *way, int kind)
{
    PyObject *op = PyDict_GetItemWithError(way->operations, keys[kind]);

    if (op == NULL || !PyObject_TypeCheck(op, operation_type) || ((Operation *)op)->owed
        || (kind == RECEIVE && ((Operation *)op)->group == NO_GROUP))
        return NULL;
    return (Operation *)op;
}

/* One buffer of a list as the operation has it. NULL: it is unusual, or is too much. */
static PyObject *look_at_item(PyObject *item, Py_ssize_t *total)
{
    PyObject *looked;
    Py_ssize_t length = 0;
    char *at;

    if (!PyBytes_CheckExact(item) && !PyByteArray_CheckExact(item) && !PyMemoryView_Check(item))
        return NULL;
    looked = pin_buffer(item, 0, &at, &length);
    *total += length;
    if (*total > VECTOR_BYTES_MAX)
        Py_CLEAR(looked);
    return looked;
}

/* A copy of a list or tuple: it may change while the operation waits. NULL: it is unusual. */
static PyObject *look_at_list(PyObject *data, Py_ssize_t *total)
{
    int is_list = PyList_CheckExact(data);
    Py_ssize_t count = is_list ? PyList_Size(data) : PyTuple_Size(data);
    PyObject *items = count <= IOV_MAX_ ? PyTuple_New(count) : NULL, *item, *looked;

    *total = 0;
    for (Py_ssize_t i = 0; items != NULL && i < count; i++) {
        item = is_list ? PyList_GetItem(data, i) : PyTuple_GetItem(data, i);
        Py_XINCREF(item); /* a garbage collection may take it out of the list */
        looked = item == NULL ? NULL : look_at_item(item, total);
        Py_XDECREF(item);
        if (looked == NULL || PyTuple_SetItem(items, i, looked) < 0)
            Py_CLEAR(items);
    }
    return items;
}

/* What the operation moves, as it keeps it; `call->length` bytes. NULL: it is unusual, or an error
 * that comes from elsewhere (a signal, while Python code exports a buffer). */
static PyObject *look_at_data(Call *call)
{
    PyObject *looked = NULL;
    char *at;

    if (call->kind == INTO) {
        looked = pin_buffer(call->data, 1, &at, &call->length);
    } else if (PyList_CheckExact(call->data) || PyTuple_CheckExact(call->data)) {
        call->kind = SEND_MANY;
        looked = look_at_list(call->data, &call->length);
    } else if (PyBytes_CheckExact(call->data) || PyByteArray_CheckExact(call->data)
               || PyMemoryView_Check(call->data)) {
        looked = pin_buffer(call->data, 0, &at, &call->length);
    }
    if (looked != NULL && (call->length <= 0 || call->length > LENGTH_MAX))
        Py_CLEAR(looked);
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception))
        PyErr_Clear();
    return looked;
}

/* Tells the operation what it moves. */
static void load(Call *call, Direction *way, Operation *op, PyObject *data)
{
    op->start = 0;
    op->length = call->length;
    if (call->kind == RECEIVE) {
        op->length = way->size < call->length ? way->size : call->length;
        return;
    }
    Py_INCREF(data);
    put(call->kind == SEND_MANY ? &op->buffers : &op->buffer, data);
    if (call->kind == INTO) {
        Py_INCREF(data);
        put(&op->memory, data);
    } else {
        way->sent = 0;
    }
    /* It is borrowed until the call returns: what is left after a short write must not have changed
     * in size, nor may the list have changed. */
    Py_INCREF(data);
    put(&call->data, data);
}

/* Queues the operation, and takes the direction. */
static int queue(Call *call, Direction *way, Operation *op, PyObject *task, PyObject *data)
{
    if (PyDict_SetItem(((Engine *)op->engine)->queue, (PyObject *)op, Py_None) < 0)
        return -1;
    Py_INCREF(op);
    call->op = op;
    Py_INCREF(way);
    call->way = way;
    op->owed = 1;
    way->held = 1;
    Py_INCREF(task);
    put(&op->task, task);
    load(call, way, op, data);
    return 1;
}

/* As `begin`, with what has been looked at. From the moment when the direction is found to be free
 * until it is taken, no code of Python runs, not even a garbage collection. */
static int begin_with(Call *call, PyObject *task, PyObject *data)
{
    Direction *way = find_way(call);
    Operation *op = way == NULL ? NULL : find_operation(way, call->kind);
    int begun = 0;

    if (op != NULL && can_begin(op))
        begun = queue(call, way, op, task, data);
    else if (PyErr_Occurred())
        begun = -1;
    Py_XDECREF(way);
    return begun;
}

/* Takes the direction and queues the operation. 1: done; 0: unusual, and Python's; -1: an error. */
int begin(Call *call)
{
    PyObject *data = NULL, *task;
    int begun;

    if (call->kind != RECEIVE && (data = look_at_data(call)) == NULL)
        return PyErr_Occurred() ? -1 : 0;
    task = current_task();
    if (task == NULL)
        PyErr_Clear(); /* Python says what is wrong */
    begun = task == NULL ? 0 : begin_with(call, task, data);
    Py_XDECREF(task);
    Py_XDECREF(data);
    return begun;
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

static PyObject *end_into(Call *call, PyObject **rest)
{
    Operation *op = call->op;

    Py_CLEAR(op->memory); /* the caller may resize its buffer again */
    if (op->res >= 0)
        return PyLong_FromLong(op->res);
    *rest = PyObject_CallFunctionObjArgs(of_into.rest, call->stream, (PyObject *)op, call->data,
                                         NULL);
    return NULL;
}

static PyObject *end_send(Call *call, PyObject **rest)
{
    Operation *op = call->op;

    call->way->sent = op->res > 0 ? op->res : 0;
    if (op->res == call->length) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    *rest = PyObject_CallFunctionObjArgs(of_send.rest, call->stream, (PyObject *)op, call->data,
                                         NULL);
    return NULL;
}

/* What the call returns; or NULL, and in `rest` the coroutine that does the rest, or an error. */
PyObject *end(Call *call, PyObject **rest)
{
    if (call->kind == RECEIVE)
        return end_receive(call, rest);
    return call->kind == INTO ? end_into(call, rest) : end_send(call, rest);
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
