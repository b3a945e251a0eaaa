/* How a call of a stream or socket begins, and what it returns.
 *
 * Rules of this file: `begin` changes nothing unless it goes all the way. What it checks is what
 * `Direction.take`, `Direction.lend` and `Engine.perform` check; what it does not understand is
 * unusual.
 */
#include "hot.h"

#define LENGTH_MAX (1 << 30)  /* bytes: SEND_MAX of _bytes/outgoing.py, as the next two */
#define VECTOR_BYTES_MAX (1 << 22)
#define SMALL_SIZE 4096       /* as in _ring/figures.py */
#define LARGE_GROUP 1         /* as in _ring/op.py, like the next one */
#define NO_GROUP (-1)
#define OP_POLL_ADD 6         /* as in _ring/opcodes.py */

PyObject *running; /* the phase in which operations begin */
PyObject *adapt;   /* of _descriptors/provided.py */

/* The keys of a direction's operations; of those for calls of the socket itself: ~kind. */
static PyObject *keys[KINDS], *lent_keys[KINDS];
static PyObject *empty, *s_receiving, *s_sending, *s_lease_receiving, *s_lease_sending;
static PyObject *s_own_lease, *s_operation, *s_owner, *s_sock;

/* -- beginning */

/* Whether the descriptor has still the number that it had. -1: an exception. */
static int is_same_number(Direction *way)
{
    PyObject *number = PyObject_CallNoArgs(way->fileno);
    long fd = number == NULL ? -1 : PyLong_AsLong(number);

    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : fd == way->fd;
}

/* Whether a task waits for the operation, or the kernel has it, or Python has to find out. */
static int is_in_use(PyObject *waiter)
{
    Operation *op = (Operation *)waiter;

    return !PyObject_TypeCheck(waiter, operation_type) || !is_none(op->task)
        || op->opcode == OP_POLL_ADD || is_in_kernel(op) != 0;
}

/* Whether nobody has the direction, and nothing has to be done first. */
static int is_free(Direction *way, int lent)
{
    if (way->held || way->ended || !is_none(way->left) || !is_none(way->kept))
        return 0;
    if (is_none(way->waiter))
        return !lent || way->lends;
    return lent && way->lends && !is_in_use(way->waiter);
}

/* What has the directions of a socket: its lease, if that is on the plain socket within. */
static PyObject *lease_of(PyObject *socket)
{
    PyObject *lease = PyObject_GetAttr(socket, s_own_lease), *owner = NULL, *plain = NULL;
    int same;

    if (!is_none(lease)) {
        owner = PyObject_GetAttr(lease, s_owner);
        plain = PyObject_GetAttr(socket, s_sock);
    }
    same = owner != NULL && owner == plain;
    Py_XDECREF(owner);
    Py_XDECREF(plain);
    if (!same)
        Py_CLEAR(lease);
    return lease;
}

static PyObject *get_way(Call *call)
{
    int reads = call->kind == RECEIVE || call->kind == INTO;
    PyObject *lease, *way;

    if (!call->method->lent)
        return PyObject_GetAttr(call->owner, reads ? s_receiving : s_sending);
    lease = lease_of(call->owner);
    way = lease == NULL ? NULL : PyObject_GetAttr(lease, reads ? s_lease_receiving
                                                                : s_lease_sending);
    Py_XDECREF(lease);
    return way;
}

/* The direction, if the call can have it at once. NULL: unusual, or an error. */
static Direction *find_way(Call *call)
{
    PyObject *way = get_way(call);

    if (way == NULL)
        return NULL;
    if (PyObject_TypeCheck(way, direction_type) && is_same_number((Direction *)way) > 0
        && is_free((Direction *)way, call->method->lent))
        return (Direction *)way;
    Py_DECREF(way);
    return NULL;
}

/* Whether an engine on a ring can perform an operation here and now. -1: an exception. */
static int is_usual(Engine *engine, Operation *op)
{
    PyObject *opcode;
    int by_call;

    if (engine->phase != running || engine->thread != PyThread_get_thread_ident()
        || (!is_none(engine->hooks) && PyDict_Size(engine->queue) == 0))
        return 0;
    opcode = PyLong_FromLong(op->opcode);
    by_call = opcode == NULL ? -1 : PySet_Contains(engine->by_calls, opcode);
    Py_XDECREF(opcode);
    return by_call < 0 ? -1 : !by_call;
}

/* The engine of an operation, if that can be performed here and now without more ado. */
static Engine *find_engine(Direction *way, Operation *op, int lent)
{
    int usual = 0;

    if (op->engine == NULL)
        return NULL;
    if (PyObject_TypeCheck(op->engine, ready_type)) /* a socket's own calls are trio's */
        usual = lent ? 0 : is_usual_ready((Ready *)op->engine, way);
    else if (PyObject_TypeCheck(op->engine, engine_type))
        usual = is_usual((Engine *)op->engine, op);
    return usual > 0 ? (Engine *)op->engine : NULL;
}

/* Has Python make the operation, which the direction keeps. NULL: unusual, or an error. */
static PyObject *make_operation(Direction *way, PyObject *key, int lent)
{
    PyObject *op = PyObject_CallMethodObjArgs((PyObject *)way, s_operation, key, NULL);

    Py_XDECREF(op);
    /* A garbage collection may have changed the direction. */
    return op != NULL && is_free(way, lent) ? PyDict_GetItemWithError(way->operations, key) : NULL;
}

static Operation *find_operation(Direction *way, int kind, int lent)
{
    PyObject *key = lent ? lent_keys[kind] : keys[kind];
    PyObject *op = PyDict_GetItemWithError(way->operations, key);

    if (op == NULL && !PyErr_Occurred())
        op = make_operation(way, key, lent);
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
 * that comes from elsewhere (a signal, while code of Python exports a buffer). */
static PyObject *look_at_data(Call *call)
{
    PyObject *looked = NULL;
    char *at;

    if (call->kind == INTO) {
        looked = pin_buffer(call->data, 1, &at, &call->length);
    } else if (!call->method->lent
               && (PyList_CheckExact(call->data) || PyTuple_CheckExact(call->data))) {
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
    } else if (!call->method->lent) {
        way->sent = 0;
    }
    /* It is borrowed until the call returns: what is left after a short write must not have changed
     * in size, nor may the list have changed. */
    Py_INCREF(data);
    put(&call->data, data);
}

/* Takes the direction. */
static void take(Call *call, Direction *way, Operation *op, PyObject *data)
{
    Py_INCREF(op);
    call->op = op;
    Py_INCREF(way);
    call->way = way;
    op->owed = 1;
    if (call->method->lent) {
        Py_INCREF(op);
        put(&way->waiter, (PyObject *)op);
    } else {
        way->held = 1;
    }
    load(call, way, op, data);
}

/* Queues the operation for the ring, and takes the direction. Returns what to yield. */
static PyObject *queue(Call *call, Direction *way, Operation *op, PyObject *task, PyObject *data)
{
    if (PyDict_SetItem(((Engine *)op->engine)->queue, (PyObject *)op, Py_None) < 0)
        return NULL;
    Py_INCREF(task);
    put(&op->task, task);
    take(call, way, op, data);
    return parked_message(op);
}

/* Makes the operation, if the direction is free still: code of Python may have run since that was
 * found, if only in a garbage collection. */
static PyObject *make(Call *call, Direction *way, Operation *op, PyObject *task, PyObject *data)
{
    Engine *engine = find_engine(way, op, call->method->lent);

    if (engine == NULL || op->owed || !is_free(way, call->method->lent))
        return NULL;
    if (!PyObject_TypeCheck((PyObject *)engine, ready_type))
        return queue(call, way, op, task, data);
    take(call, way, op, data);
    return begin_by_call(call, (Ready *)engine);
}

/* As `begin`, with what has been looked at. Returns what to yield. */
static PyObject *begin_with(Call *call, PyObject *task, PyObject *data)
{
    Direction *way = find_way(call);
    Operation *op = way == NULL ? NULL : find_operation(way, call->kind, call->method->lent);
    PyObject *message = NULL;

    if (op != NULL) {
        Py_INCREF(op);
        message = make(call, way, op, task, data);
        Py_DECREF(op);
    }
    Py_XDECREF(way);
    return message;
}

/* Takes the direction, and queues the operation or makes its first attempt. In `message`: what to
 * yield. 1: done; 0: unusual, and Python's; -1: an error. */
int begin(Call *call, PyObject **message)
{
    PyObject *data = NULL, *task;

    *message = NULL;
    if (call->kind != RECEIVE && (data = look_at_data(call)) == NULL)
        return PyErr_Occurred() ? -1 : 0;
    task = current_task();
    if (task == NULL)
        PyErr_Clear(); /* Python says what is wrong */
    else
        *message = begin_with(call, task, data);
    Py_XDECREF(task);
    Py_XDECREF(data);
    if (call->way != NULL)
        return 1;
    return PyErr_Occurred() ? -1 : 0;
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

/* What came, as bytes. */
static PyObject *take_chunk(Call *call)
{
    Operation *op = call->op;
    PyObject *chunk;

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

/* The coroutine of Python that does the rest. */
static PyObject *make_rest(Call *call)
{
    PyObject *op = (PyObject *)call->op;

    if (call->kind == RECEIVE)
        return PyObject_CallFunction(call->method->rest, "OOn", call->owner, op, call->length);
    return PyObject_CallFunctionObjArgs(call->method->rest, call->owner, op, call->data, NULL);
}

/* What the call returns; or NULL, and in `rest` the coroutine that does the rest, or an error. */
PyObject *end(Call *call, PyObject **rest)
{
    Operation *op = call->op;
    int sends_all = !call->method->lent && call->kind >= SEND;

    Py_CLEAR(op->memory); /* the caller may resize its buffer again */
    if (sends_all)
        call->way->sent = op->res > 0 ? op->res : 0;
    if (op->res < 0 || (sends_all && op->res != call->length)) {
        *rest = make_rest(call);
        return NULL;
    }
    if (call->kind == RECEIVE)
        return take_chunk(call);
    if (!sends_all)
        return PyLong_FromLong(op->res);
    Py_INCREF(Py_None);
    return Py_None;
}

int make_streams(void)
{
    const Name names[] = {
        {&s_receiving, "_receiving"}, {&s_sending, "_sending"},
        {&s_lease_receiving, "receiving"}, {&s_lease_sending, "sending"},
        {&s_own_lease, "_own_lease"}, {&s_owner, "owner"}, {&s_operation, "operation"},
        {&s_sock, "_sock"},
    };

    for (int kind = 0; kind < KINDS; kind++) {
        keys[kind] = PyLong_FromLong(kind);
        lent_keys[kind] = PyLong_FromLong(~kind);
        if (keys[kind] == NULL || lent_keys[kind] == NULL)
            return -1;
    }
    empty = PyBytes_FromStringAndSize(NULL, 0);
    return empty == NULL ? -1 : make_names(names, COUNT(names));
}
