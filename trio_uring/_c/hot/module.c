/* The module trio_uring._hot.
 *
 * Rules of this file: importing either succeeds completely or raises.
 */
#include "hot.h"

int make_names(const Name *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        *names[i].into = PyUnicode_InternFromString(names[i].text);
        if (*names[i].into == NULL)
            return -1;
    }
    return 0;
}

static int add_type(PyObject *module, const char *name, PyTypeObject *type)
{
    Py_INCREF(type); /* our own variable keeps one */
    if (PyModule_AddObject(module, name, (PyObject *)type) == 0)
        return 0;
    Py_DECREF(type);
    return -1;
}

static int add_types(PyObject *module)
{
    if (make_operation_type() < 0 || make_field_types() < 0 || make_ring_type() < 0
        || make_loop_type() < 0 || make_ready_type() < 0 || make_call_type() < 0
        || make_streams() < 0 || make_methods() < 0)
        return -1;
    if (add_type(module, "Operation", operation_type) < 0
        || add_type(module, "Direction", direction_type) < 0
        || add_type(module, "Engine", engine_type) < 0
        || add_type(module, "ReadinessEngine", ready_type) < 0
        || add_type(module, "Loop", loop_type) < 0
        || PyModule_AddObjectRef(module, "HAPPENED", happened) < 0)
        return -1;
    return add_type(module, "Ring", ring_type);
}

static PyMethodDef functions[] = {
    {"finish_all", finish_all, METH_O, "Finishes operations. True: a task was woken."},
    {"use_states", use_states, METH_VARARGS, "Tells C the states of an operation."},
    {"write_queue", write_queue_of, METH_VARARGS, "Submits what is queued. False: not all of it."},
    {"use_methods", use_methods, METH_VARARGS, "Gives streams their methods in C."},
    {"use_socket_methods", use_socket_methods, METH_O, "Gives sockets their methods in C."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "trio_uring._hot", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__hot(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL && (add_types(module) < 0 || find_trio() < 0 || find_epoll() < 0))
        Py_CLEAR(module);
    return module;
}
