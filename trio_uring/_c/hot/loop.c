/* A pass of the loop: what Loop.get_events of _driver/loop.py does in most passes.
 *
 * The queue becomes entries, one io_uring_enter submits them and waits, completions are collected
 * and their tasks rescheduled. tu_turn, which does the middle part, is called by its address
 * (`Ring.turn_at`), so that tests can put one in its place that injects faults.
 *
 * Rules of this file: a pass that is unusual (an errand, a cancel, a descriptor to be closed, a
 * kernel that is short of resources, a signal) is handed to Python, from the beginning or between
 * two enters. So nothing may be lost in between: what was drained is in `engine.done`.
 */
#include "hot.h"

#include <time.h>

PyTypeObject *loop_type;

PyObject *happened; /* true, and never passed on to trio's manager */
static PyObject *s_in_python, *s_drain, *s_fail, *s_process;

#define ENTER_GETEVENTS 1U
#define DRAIN_MAX 1024        /* as in _ring/uring.py, like the next two */
#define ALL 256
#define FOREVER 86400.0

typedef int (*turn_function)(void *ring, unsigned least, unsigned flags, double seconds,
                             int64_t *out, unsigned most);
typedef int (*more_function)(void *ring);

/* time.monotonic(), in seconds */
double monotonic(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int more(Ring *ring)
{
    return ((more_function)(uintptr_t)ring->more_at)((void *)(uintptr_t)ring->ring_at);
}

/* Enters the kernel as `turn` of _ring/uring.py does. Returns how many completions came. */
static int enter(Ring *ring, double timeout)
{
    unsigned least = 0;
    double seconds = -1.0;
    int came;

    if (timeout > 0) {
        least = 1;
        seconds = timeout < FOREVER ? timeout : -1.0;
    } else if (ring->more_work) {
        least = ALL;
        seconds = 0.0;
    }
    Py_BEGIN_ALLOW_THREADS
    came = ((turn_function)(uintptr_t)ring->turn_at)((void *)(uintptr_t)ring->ring_at, least,
                                                     ENTER_GETEVENTS, seconds,
                                                     (int64_t *)(uintptr_t)ring->out_at, DRAIN_MAX);
    Py_END_ALLOW_THREADS
    return came;
}

/* Calls ring.drain(engine.done). 1: it has written cancels, which have to be flushed. */
static int drain(Engine *engine, Ring *ring)
{
    PyObject *again = PyObject_CallMethodObjArgs((PyObject *)ring, s_drain, engine->done, NULL);
    int result = again == NULL ? -1 : PyObject_IsTrue(again);

    Py_XDECREF(again);
    return result;
}

/* After the enter: what it has taken, and what came. 1: there are cancels to be flushed. */
static int take_turn(Engine *engine, Ring *ring, int came)
{
    const int64_t *out = (const int64_t *)(uintptr_t)ring->out_at;
    int64_t left = out[0], taken = out[1];
    PyObject *entered;

    ring->enters++;
    if (came > 0) {
        ring->completions += came;
        if (collect_all(ring, came, engine->done) < 0)
            return -1;
    }
    if (ring->unsubmitted && taken == ring->unsubmitted) {
        ring->unsubmitted = 0;
        ring->is_short = 0;
    } else {
        entered = PyObject_CallMethod((PyObject *)ring, "_entered", "L", (long long)taken);
        if (entered == NULL)
            return -1;
        Py_DECREF(entered);
    }
    ring->more_work = (left & 2) != 0;
    if (left & 5 || PyObject_Size(ring->missed) > 0)
        return drain(engine, ring);
    return 0;
}

/* Whether there is anything that a pass in C does not do. */
static int is_unusual(Engine *engine, Ring *ring)
{
    return engine->phase != running || engine->dirty || ring->is_short || ring->turn_at == 0
        || ring->ring_at == 0 || !ring->watching || PyList_Size(engine->errands) > 0
        || PyObject_Size(ring->late_cancels) > 0;
}

static int check(PyObject *function, Ring *ring, PyObject *operations)
{
    PyObject *checked;

    if (is_none(function))
        return 0;
    checked = PyObject_CallFunctionObjArgs(function, (PyObject *)ring, operations, NULL);
    Py_XDECREF(checked);
    return checked == NULL ? -1 : 0;
}

/* Wakes whoever waits for what was drained. */
static int finish_done(Engine *engine, Ring *ring)
{
    PyObject *woke;

    ring->now = monotonic();
    if (check(engine->check_done, ring, engine->done) < 0)
        return -1;
    woke = finish_all(NULL, engine->done);
    if (woke == NULL)
        return -1;
    engine->woke = engine->woke || woke == Py_True;
    Py_DECREF(woke);
    return PyList_SetSlice(engine->done, 0, PyList_Size(engine->done), NULL);
}

/* Enters once, if there is a reason to. 1: something happened; 0: nothing; -1: an exception. */
static int turn(Engine *engine, Ring *ring, double timeout)
{
    int cancels;

    if (engine->woke)
        timeout = 0;
    if (timeout <= 0 && !ring->unsubmitted && !more(ring))
        return 0;
    cancels = take_turn(engine, ring, enter(ring, timeout));
    if (cancels < 0)
        return -1;
    if (!cancels && PyList_Size(engine->done) == 0)
        return 0;
    return finish_done(engine, ring) < 0 ? -1 : 1;
}

/* What trio's own epoll has to report; if that is nothing, something happened all the same. */
static PyObject *ask_trio(Loop *loop)
{
    PyObject *events = PyObject_CallMethod(loop->inner, "get_events", "i", 0);

    if (events != NULL && PyObject_IsTrue(events) == 0) {
        Py_INCREF(happened);
        put(&events, happened);
    }
    return events;
}

static PyObject *go_on_in_python(Loop *loop, double until, int any)
{
    return PyObject_CallMethod((PyObject *)loop, "_pass", "dO", until, any ? Py_True : Py_False);
}

/* The kernel is short of resources: it is asked again after a pause. */
static PyObject *pause_in_python(Loop *loop, double timeout)
{
    return PyObject_CallMethod((PyObject *)loop, "_pause", "d", timeout);
}

static PyObject *return_new(PyObject *value)
{
    Py_INCREF(value);
    return value;
}

/* The queue becomes entries, which are subtracted from `left`. 0: not all of it; -1: an
 * exception. */
static int write_all(Engine *engine, Ring *ring, Py_ssize_t *left)
{
    Py_ssize_t before = PyDict_Size(engine->queue);
    int written = write_queue(ring, engine->queue);

    *left -= before - PyDict_Size(engine->queue);
    if (written >= 0 && check(engine->check_written, ring, engine->queue) < 0)
        return -1;
    return written;
}

/* Enters until a task was woken, trio's epoll has something, or the time is up. */
static PyObject *make_pass(Loop *loop, Engine *engine, Ring *ring, double timeout)
{
    double until = timeout > 0 ? monotonic() + timeout : 0;
    Py_ssize_t left = PyDict_Size(engine->queue); /* to be written before trio has its turn */
    int any = 0, came, written, full;

    for (;;) {
        written = PyDict_Size(engine->queue) > 0 ? write_all(engine, ring, &left) : 1;
        if (written < 0)
            return NULL;
        full = !written && ring->unsubmitted >= ring->submit_max;
        if ((!written && !full) || is_unusual(engine, ring))
            return go_on_in_python(loop, until, any);
        came = turn(engine, ring, full ? 0 : timeout);
        if (came < 0)
            return NULL;
        any |= came;
        /* Completions are taken before more is written, or they would use up the buffers. But what
         * they chain must not keep trio waiting. */
        if (full && left > 0 && !ring->is_short)
            continue;
        if (ring->watched) {
            ring->watched = 0;
            return ask_trio(loop);
        }
        if (engine->woke)
            return return_new(happened);
        ring->now = monotonic();
        timeout = until - ring->now;
        if (ring->is_short)
            return pause_in_python(loop, timeout);
        if (timeout <= 0)
            return any || full ? return_new(happened) : PyTuple_New(0);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
}

/* The ring has failed, unless the exception comes from the handler of a signal. */
static PyObject *fail(Engine *engine)
{
    PyObject *type, *value, *traceback, *failed;

    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    failed = PyObject_CallMethodObjArgs((PyObject *)engine, s_fail, value, NULL);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    if (failed == NULL)
        return NULL;
    Py_DECREF(failed);
    return return_new(happened);
}

/* Whether a loop has what C knows: a ring may be of somebody else's class. */
static int is_known(Loop *loop)
{
    return loop->engine != NULL && PyObject_TypeCheck(loop->engine, engine_type)
        && loop->ring != NULL && PyObject_TypeCheck(loop->ring, ring_type);
}

static PyObject *get_events(PyObject *self, PyObject *argument)
{
    Loop *loop = (Loop *)self;
    Engine *engine = (Engine *)loop->engine;
    Ring *ring = (Ring *)loop->ring;
    double timeout = PyFloat_AsDouble(argument);
    PyObject *events;

    if (timeout == -1.0 && PyErr_Occurred())
        return NULL;
    if (!is_known(loop) || is_unusual(engine, ring))
        return PyObject_CallMethodObjArgs(self, s_in_python, argument, NULL);
    engine->passes++;
    engine->woke = 0;
    if (timeout <= 0 && PyDict_Size(engine->queue) == 0 && !ring->unsubmitted && !more(ring))
        return PyTuple_New(0);
    engine->busy = 1;
    events = make_pass(loop, engine, ring, timeout);
    engine->busy = 0;
    return events == NULL ? fail(engine) : events;
}

/* As `_process_events` of _driver/loop.py. */
static PyObject *process_events(PyObject *self, PyObject *events)
{
    int any = events == happened ? 0 : PyObject_IsTrue(events);

    if (any > 0)
        return PyObject_CallMethodObjArgs(((Loop *)self)->inner, s_process, events, NULL);
    if (any < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* -- the type */

static int loop_traverse(PyObject *self, visitproc visit, void *arg)
{
    Loop *loop = (Loop *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(loop->engine);
    Py_VISIT(loop->ring);
    Py_VISIT(loop->inner);
    return 0;
}

static int loop_clear(PyObject *self)
{
    Loop *loop = (Loop *)self;

    Py_CLEAR(loop->engine);
    Py_CLEAR(loop->ring);
    Py_CLEAR(loop->inner);
    return 0;
}

static void loop_dealloc(PyObject *self)
{
    free_tracked(self, loop_clear);
}

static PyMemberDef loop_members[] = {
    {"_engine", T_OBJECT_EX, offsetof(Loop, engine), 0, NULL},
    {"_ring", T_OBJECT_EX, offsetof(Loop, ring), 0, NULL},
    {"inner", T_OBJECT_EX, offsetof(Loop, inner), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef loop_methods[] = {
    {"get_events", get_events, METH_O, "Makes a pass: submits, waits, wakes."},
    {"process_events", process_events, METH_O, "Passes on what trio's epoll has reported."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_doc, "The part of the loop that C does."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_members, loop_members},
    {Py_tp_methods, loop_methods},
    {0, NULL},
};

static PyType_Spec loop_spec = {
    "trio_uring._hot.Loop", sizeof(Loop), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, loop_slots,
};

int make_loop_type(void)
{
    const Name names[] = {
        {&s_in_python, "_get_events"}, {&s_drain, "drain"}, {&s_fail, "fail"},
        {&s_process, "process_events"},
    };

    if (make_names(names, COUNT(names)) < 0 || (happened = Py_BuildValue("[O]", Py_None)) == NULL)
        return -1;
    loop_type = (PyTypeObject *)PyType_FromSpec(&loop_spec);
    return loop_type == NULL ? -1 : 0;
}
