/* The fields of a direction and of an engine that C reads for every call.
 *
 * Rules of this file: fields only. What they mean, and every rule about them, is in Python:
 * _descriptors/direction.py and _driver/ring_side.py.
 */
#include "hot.h"

PyTypeObject *direction_type, *engine_type;

static int direction_traverse(PyObject *self, visitproc visit, void *arg)
{
    Direction *way = (Direction *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(way->fileno);
    Py_VISIT(way->waiter);
    Py_VISIT(way->left);
    Py_VISIT(way->kept);
    Py_VISIT(way->operations);
    return 0;
}

static int direction_clear(PyObject *self)
{
    Direction *way = (Direction *)self;

    Py_CLEAR(way->fileno);
    Py_CLEAR(way->waiter);
    Py_CLEAR(way->left);
    Py_CLEAR(way->kept);
    Py_CLEAR(way->operations);
    return 0;
}

static void direction_dealloc(PyObject *self)
{
    free_tracked(self, direction_clear);
}

static PyMemberDef direction_members[] = {
    {"fileno", T_OBJECT_EX, offsetof(Direction, fileno), 0, NULL},
    {"waiter", T_OBJECT, offsetof(Direction, waiter), 0, NULL},
    {"left", T_OBJECT, offsetof(Direction, left), 0, NULL},
    {"kept", T_OBJECT, offsetof(Direction, kept), 0, NULL},
    {"operations", T_OBJECT_EX, offsetof(Direction, operations), 0, NULL},
    {"size", T_PYSSIZET, offsetof(Direction, size), 0, NULL},
    {"sent", T_PYSSIZET, offsetof(Direction, sent), 0, NULL},
    {"fd", T_INT, offsetof(Direction, fd), 0, NULL},
    {"streak", T_INT, offsetof(Direction, streak), 0, NULL},
    {"held", T_BOOL, offsetof(Direction, held), 0, NULL},
    {"ended", T_BOOL, offsetof(Direction, ended), 0, NULL},
    {"is_socket", T_BOOL, offsetof(Direction, is_socket), 0, NULL},
    {"lends", T_BOOL, offsetof(Direction, lends), 0, NULL},
    {"closes_alone", T_BOOL, offsetof(Direction, closes_alone), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot direction_slots[] = {
    {Py_tp_doc, "The fields of a direction that C reads."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, direction_dealloc},
    {Py_tp_traverse, direction_traverse},
    {Py_tp_clear, direction_clear},
    {Py_tp_members, direction_members},
    {0, NULL},
};

static PyType_Spec direction_spec = {
    "trio_uring._hot.Direction", sizeof(Direction), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, direction_slots,
};

int engine_traverse(PyObject *self, visitproc visit, void *arg)
{
    Engine *engine = (Engine *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(engine->phase);
    Py_VISIT(engine->hooks);
    Py_VISIT(engine->queue);
    Py_VISIT(engine->by_calls);
    Py_VISIT(engine->check_done);
    Py_VISIT(engine->check_written);
    Py_VISIT(engine->done);
    Py_VISIT(engine->errands);
    return 0;
}

int engine_clear(PyObject *self)
{
    Engine *engine = (Engine *)self;

    Py_CLEAR(engine->phase);
    Py_CLEAR(engine->hooks);
    Py_CLEAR(engine->queue);
    Py_CLEAR(engine->by_calls);
    Py_CLEAR(engine->check_done);
    Py_CLEAR(engine->check_written);
    Py_CLEAR(engine->done);
    Py_CLEAR(engine->errands);
    return 0;
}

static void engine_dealloc(PyObject *self)
{
    free_tracked(self, engine_clear);
}

static PyMemberDef engine_members[] = {
    {"phase", T_OBJECT_EX, offsetof(Engine, phase), 0, NULL},
    {"hooks", T_OBJECT, offsetof(Engine, hooks), 0, NULL},
    {"queue", T_OBJECT_EX, offsetof(Engine, queue), 0, NULL},
    {"by_calls", T_OBJECT_EX, offsetof(Engine, by_calls), 0, NULL},
    {"errands", T_OBJECT_EX, offsetof(Engine, errands), 0, NULL},
    {"done", T_OBJECT_EX, offsetof(Engine, done), 0, NULL},
    {"check_written", T_OBJECT, offsetof(Engine, check_written), 0, NULL},
    {"check_done", T_OBJECT, offsetof(Engine, check_done), 0, NULL},
    {"passes", T_PYSSIZET, offsetof(Engine, passes), 0, NULL},
    {"woke", T_BOOL, offsetof(Engine, woke), 0, NULL},
    {"dirty", T_BOOL, offsetof(Engine, dirty), 0, NULL},
    {"busy", T_BOOL, offsetof(Engine, busy), 0, NULL},
    {"thread", T_ULONGLONG, offsetof(Engine, thread), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "The fields of an engine that C reads."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_traverse, engine_traverse},
    {Py_tp_clear, engine_clear},
    {Py_tp_members, engine_members},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    "trio_uring._hot.Engine", sizeof(Engine), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, engine_slots,
};

int make_field_types(void)
{
    direction_type = (PyTypeObject *)PyType_FromSpec(&direction_spec);
    engine_type = direction_type == NULL ? NULL : (PyTypeObject *)PyType_FromSpec(&engine_spec);
    return engine_type == NULL ? -1 : 0;
}
