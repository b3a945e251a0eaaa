/* The accelerator: what most calls cross for every operation, in C. The Python modules named below
 * say the same, and are the specification (PEP 399): they are used where this was not built, or
 * where trio is not as it was, and the same tests run over both.
 *
 *     task.c       what trio's reschedule() does
 *     operation.c  an operation: its fields and its result        _driver/operation.py
 *     fields.c     the fields of directions and engines          _descriptors, _driver/ring_side.py
 *     ring.c       a ring: entries and completions                _ring/base.py
 *     pins.c       what entries point at                          _ring/entries.py
 *     loop.c       a pass of the loop                             _driver/loop.py
 *     readiness.c  operations by system calls                    _driver/readiness.py
 *     epoll.c      trio's own epoll manager                       (trio)
 *     call.c       a call of a stream, as an awaitable            _streams/receive.py, send.py
 *     streams.c    how a call begins, and what it returns         the same
 *     methods.c    the methods of streams and sockets             the same, and _sockets
 *     module.c     the module
 *
 * Rules of these files:
 *
 * - Limited API 3.10: one build serves all Pythons from there on.
 * - Whatever is unusual is left to Python: aborting, refusing, guest runs, short writes, errors.
 * - Nothing that the garbage collector tracks is made for a call.
 * - Each private name of trio's that is used is looked up at import, which fails if one is missing.
 *   Slots are read and written by their own descriptors.
 * - An error leaves everything as it was, or is the caller's to handle.
 */
#ifndef TRIO_URING_HOT_H
#define TRIO_URING_HOT_H

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define IOV_MAX_ 1024 /* buffers of one operation, as in _bytes/outgoing.py */

/* A coroutine, and its method `send`. */
typedef struct {
    PyObject *coro, *send;
} Sender;

/* An operation, as in _ring/op.py and _driver/operation.py. */
typedef struct {
    PyObject_HEAD
    PyObject *engine;       /* performs it */
    PyObject *task;         /* waits for the completion */
    PyObject *then;         /* is called with the completion */
    PyObject *raise_cancel; /* of a cancellation that was asked for, or a refusal */
    Sender sender;          /* of the last task */
    PyObject *message;      /* WaitTaskRescheduled(self.abort); made once, unlinked by the owner */
    PyObject *state;        /* NEW, SUBMITTED, CANCELLING, DONE */
    PyObject *buffer;       /* held until the completion */
    PyObject *buffers;      /* the same, for several buffers */
    PyObject *memory;       /* where a receive without a provided buffer puts its bytes */
    PyObject *pin;          /* keeps what the entry points at */
    PyObject *chunk;        /* what a provided buffer held */
    PyObject *entry;        /* the ring's own, kept from one use to the next */
    unsigned long long entry_at; /* the address of the entry, while there is one */
    long long token;
    Py_ssize_t start, length;    /* bytes of the buffer to skip; bytes that follow */
    double born;            /* seconds, time.monotonic() of the pass that submitted it */
    int opcode, group;
    int res;                /* >= 0, or -errno */
    char owed;              /* a call has had it performed, and has not got the result */
    char parked;            /* between the yield and the task's resumption */
} Operation;

/* A direction of a descriptor, as in _descriptors/direction.py. */
typedef struct {
    PyObject_HEAD
    PyObject *fileno;       /* a function */
    PyObject *waiter, *left, *kept; /* None if there is none */
    PyObject *operations;   /* a dict */
    Py_ssize_t size;        /* bytes of the buffers that it receives into */
    Py_ssize_t sent;        /* bytes of the current or last send_all that the kernel has taken */
    int fd, streak;
    char held, ended, is_socket;
    char lends;             /* bytes are moved by completion for the socket itself */
    char closes_alone;      /* its descriptor stays open, for the other direction */
} Direction;

/* An engine on a ring, as in _driver/ring_side.py. */
typedef struct {
    PyObject_HEAD
    PyObject *phase, *hooks, *queue, *by_calls, *errands;
    PyObject *done;         /* a list of operations: drained and not yet finished */
    PyObject *check_written, *check_done; /* functions, in tests; otherwise None */
    unsigned long long thread;
    Py_ssize_t passes;
    char woke, dirty;
    char busy;              /* the ring is being used, or tasks are being woken */
} Engine;

/* A ring, as in _ring/base.py and uring.py. */
typedef struct {
    PyObject_HEAD
    PyObject *table;        /* what is in flight: token -> operation */
    PyObject *submitted;    /* counts, by opcode */
    PyObject *moved;        /* sums of the results > 0, by opcode */
    PyObject *counters;
    PyObject *starts;       /* where in the provided memory each buffer begins, in bytes */
    PyObject *late_cancels; /* targets of cancels that are not yet written */
    PyObject *missed;       /* targets that a cancel did not find */
    /* Addresses; 0: there is none. */
    unsigned long long provided_at, ring_at, write_at, out_at, turn_at, more_at;
    double now;             /* seconds; it stamps Operation.born */
    long long enters, completions;
    long long token;        /* the last one that was given */
    int unsubmitted;        /* entries that are written and not submitted */
    int submit_max;         /* of these, until `submit` refuses more */
    char watching, watched; /* trio's epoll */
    char is_short;          /* the kernel is short of resources */
    char more_work;         /* the last turn left task work for the next one */
} Ring;

/* The loop, as in _driver/loop.py. */
typedef struct {
    PyObject_HEAD
    PyObject *engine, *ring;
    PyObject *inner;        /* trio's I/O manager */
} Loop;

/* An engine by readiness, as in _driver/readiness.py. */
typedef struct {
    Engine engine;
    PyObject *counters;
    PyObject *waiting;      /* a dict: operations whose tasks wait, and since when */
    PyObject *manager;      /* trio's epoll manager; None if there is none */
    char *large;            /* memory that receives go through */
    char small[4096];
} Ready;

/* task.c */
extern PyObject *trio_message; /* the class WaitTaskRescheduled */
extern PyObject *checkpoint_message; /* what cancel_shielded_checkpoint() yields */
int find_trio(void);
PyObject *find_slot(PyObject *module, const char *owner, const char *name);
PyObject *slot_get(PyObject *descriptor, PyObject *object);
int slot_set(PyObject *descriptor, PyObject *object, PyObject *value);
PyObject *current_task(void);
int reschedule(PyObject *task, PyObject *outcome, Sender *kept);
int is_cancelled(PyObject *task);

/* epoll.c */
int find_epoll(void);
int epoll_number(PyObject *manager);
PyObject *waiters_of(PyObject *manager, int fd);
long set_waiter(PyObject *waiters, int reads, PyObject *task);
int set_flags(PyObject *waiters, long flags);

/* operation.c */
extern PyTypeObject *operation_type;
int make_operation_type(void);
PyObject *use_states(PyObject *module, PyObject *arguments);
PyObject *submitted_after(PyObject *state);
PyObject *done_after(PyObject *state);
int is_in_kernel(Operation *op);
int take_result(Operation *op);
PyObject *parked_message(Operation *op);
PyObject *finish_all(PyObject *module, PyObject *done);

/* fields.c */
extern PyTypeObject *direction_type, *engine_type;
int make_field_types(void);
int engine_traverse(PyObject *self, visitproc visit, void *arg);
int engine_clear(PyObject *self);

/* ring.c */
extern PyTypeObject *ring_type;
int make_ring_type(void);
int write_queue(Ring *ring, PyObject *queue);
PyObject *write_queue_of(PyObject *module, PyObject *arguments);
int collect_all(Ring *ring, int count, PyObject *done);
int add_to(PyObject *counts, int index, long long amount);
int count_failure(PyObject *counters, Operation *op);

/* pins.c */
PyObject *pin_buffer(PyObject *buffer, int writable, char **at, Py_ssize_t *length);
PyObject *pin(Operation *op, char **at, unsigned *length);

/* loop.c */
extern PyTypeObject *loop_type;
extern PyObject *happened;
int make_loop_type(void);
double monotonic(void);

/* A call of a stream or socket: see call.c. */
enum { RECEIVE, INTO, SEND, SEND_MANY, KINDS }; /* as in _descriptors/direction.py */
typedef struct {
    PyObject_HEAD
    PyObject *owner;        /* the stream or socket */
    PyObject *data;         /* what is sent, or received into; pinned once it is parked */
    PyObject *inner;        /* the coroutine of Python that does the rest */
    Direction *way;         /* is held while the call is parked */
    Operation *op;
    Py_ssize_t length;      /* most bytes to receive; bytes to send */
    struct Method *method;
    char kind, stage, running;
    char wait;              /* what it is parked for */
} Call;
enum { COMPLETION, CHECKPOINT, READINESS };

/* A method of streams or sockets, and the functions of Python that it stands for. */
typedef struct Method {
    PyMethodDef definition;
    const char *signature, *rest_name;
    char kind;              /* of its operations */
    char lent;              /* it borrows the direction (of a socket), and does not hold it */
    PyObject *in_python;    /* the whole method, as a coroutine function */
    PyObject *rest;         /* what is left when the operation has not done it all */
} Method;

/* call.c */
int make_call_type(void);
PyObject *make_call(Method *method, PyObject *owner, PyObject *data, Py_ssize_t length);

/* readiness.c */
extern PyTypeObject *ready_type;
int make_ready_type(void);
int is_usual_ready(Ready *engine, Direction *way);
PyObject *begin_by_call(Call *call, Ready *engine);
int resume_by_call(Call *call, PyObject *outcome, PyObject **message);
void forget_wait(Call *call);

/* streams.c */
extern PyObject *running, *adapt;
int make_streams(void);
int begin(Call *call, PyObject **message);
PyObject *end(Call *call, PyObject **rest);

/* methods.c */
int make_methods(void);
PyObject *python_call(Call *call);
PyObject *name_of(Call *call, const char *which);
void warn_never_awaited(Call *call);
PyObject *use_methods(PyObject *module, PyObject *arguments);
PyObject *use_socket_methods(PyObject *module, PyObject *class);

/* Interned strings. */
typedef struct {
    PyObject **into;
    const char *text;
} Name;
int make_names(const Name *names, size_t count);
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Puts a value, whose reference it takes over, into a field. */
static inline void put(PyObject **field, PyObject *value)
{
    PyObject *before = *field;

    *field = value;
    Py_XDECREF(before);
}

static inline int is_none(PyObject *value)
{
    return value == NULL || value == Py_None;
}

/* The end of a tp_dealloc of a type of ours that the garbage collector knows. */
static inline void free_tracked(PyObject *self, inquiry clear)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc free_it = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(self);
    clear(self);
    free_it(self);
    Py_DECREF(type);
}

#endif
