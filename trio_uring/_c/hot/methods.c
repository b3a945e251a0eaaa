/* The methods of streams and sockets that make calls.
 *
 * They are put into the classes of Python (`use_methods`), in the place of the coroutine functions
 * that say the same, which are kept for what is unusual.
 *
 * Rules of this file: a method only looks at its arguments. Those that it does not understand go to
 * Python as they are, so that errors are found there.
 */
#include "hot.h"

#include <math.h>

#define RECEIVE_MAX (1 << 30) /* bytes, as in _streams/receive.py */

#define DECLARE(name) static PyObject *name(PyObject *, PyObject *const *, Py_ssize_t, PyObject *)
#define DEFINE(name, signature, rest, kind, lent) {                                            \
        {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL | METH_KEYWORDS, NULL},        \
        signature, rest, kind, lent, NULL, NULL,                                                \
    }

DECLARE(receive_some);
DECLARE(receive_into);
DECLARE(send_all);
DECLARE(recv);
DECLARE(recv_into);
DECLARE(send);

static Method of_receive_some = DEFINE(
    receive_some, "($self, max_bytes=None, *, timeout=None)", "_receive_rest", RECEIVE, 0);
static Method of_receive_into = DEFINE(
    receive_into, "($self, buffer, *, timeout=None)", "_into_rest", INTO, 0);
static Method of_send_all = DEFINE(
    send_all, "($self, data, *, timeout=None)", "_send_rest", SEND, 0);
static Method of_recv = DEFINE(recv, "($self, buflen, flags=0, /)", "_recv_rest", RECEIVE, 1);
static Method of_recv_into = DEFINE(
    recv_into, "($self, buffer, nbytes=0, flags=0)", "_recv_into_rest", INTO, 1);
static Method of_send = DEFINE(send, "($self, bytes, flags=0, /)", "_send_rest", SEND, 1);

static PyObject *s_cork, *s_receive_timeout, *s_send_timeout, *s_timeout;
static PyObject *no_limit; /* {"timeout": math.inf} */

/* The whole call, as a coroutine of Python. Its time limit, if any, is no affair of ours. */
PyObject *python_call(Call *call)
{
    PyObject *arguments, *coroutine;

    if (call->kind == RECEIVE)
        arguments = Py_BuildValue("(On)", call->owner, call->length);
    else
        arguments = Py_BuildValue("(OO)", call->owner, call->data);
    if (arguments == NULL)
        return NULL;
    coroutine = PyObject_Call(call->method->in_python, arguments,
                              call->method->lent ? NULL : no_limit);
    Py_DECREF(arguments);
    return coroutine;
}

/* An attribute of the method in Python: its name. */
PyObject *name_of(Call *call, const char *which)
{
    return PyObject_GetAttrString(call->method->in_python, which);
}

void warn_never_awaited(Call *call)
{
    PyObject *type, *value, *traceback, *name;

    PyErr_Fetch(&type, &value, &traceback);
    name = name_of(call, "__qualname__");
    if (name == NULL || PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                                         "coroutine '%U' was never awaited", name) < 0)
        PyErr_WriteUnraisable(call->owner);
    Py_XDECREF(name);
    PyErr_Restore(type, value, traceback);
}

/* -- the methods */

/* Calls the method of Python with the arguments as they are. */
static PyObject *call_python(Method *method, PyObject *self, PyObject *const *args,
                             Py_ssize_t count, PyObject *names)
{
    Py_ssize_t named = names == NULL ? 0 : PyTuple_Size(names);
    PyObject *tuple = PyTuple_New(count + 1), *dict = PyDict_New(), *result = NULL;
    int failed = tuple == NULL || dict == NULL;

    for (Py_ssize_t i = 0; !failed && i <= count; i++) {
        PyObject *item = i ? args[i - 1] : self;

        Py_INCREF(item);
        failed = PyTuple_SetItem(tuple, i, item) < 0;
    }
    for (Py_ssize_t i = 0; !failed && i < named; i++)
        failed = PyDict_SetItem(dict, PyTuple_GetItem(names, i), args[count + i]) < 0;
    if (!failed)
        result = PyObject_Call(method->in_python, tuple, dict);
    Py_XDECREF(tuple);
    Py_XDECREF(dict);
    return result;
}

/* Whether the call has no time limit: timeout=math.inf, or none at all. -1: an exception. */
static int has_no_limit(PyObject *self, PyObject *of_stream, PyObject *timeout)
{
    PyObject *limit;

    if (timeout != NULL && timeout != Py_None)
        return PyFloat_CheckExact(timeout) && PyFloat_AsDouble(timeout) == (double)INFINITY;
    limit = PyObject_GetAttr(self, of_stream);
    Py_XDECREF(limit); /* its class has it */
    return limit == NULL ? -1 : limit == Py_None;
}

/* A number of bytes. 0: something else. */
static Py_ssize_t small_length(PyObject *argument)
{
    Py_ssize_t length = PyLong_CheckExact(argument) ? PyLong_AsSsize_t(argument) : 0;

    if (PyErr_Occurred())
        PyErr_Clear();
    return length > 0 && length <= RECEIVE_MAX ? length : 0;
}

/* Finds `timeout` among the arguments. 0: there are others by name. */
static int find_timeout(PyObject *const *args, Py_ssize_t count, PyObject *names,
                        PyObject **timeout)
{
    if (names == NULL || PyTuple_Size(names) == 0)
        return 1;
    if (PyTuple_Size(names) > 1 || PyTuple_GetItem(names, 0) != s_timeout)
        return 0;
    *timeout = args[count];
    return 1;
}

/* -- of streams */

static PyObject *receive_some(PyObject *self, PyObject *const *args, Py_ssize_t count,
                              PyObject *names)
{
    PyObject *timeout = NULL;
    Py_ssize_t length = RECEIVE_MAX;
    int usual = count <= 1 && find_timeout(args, count, names, &timeout);

    if (usual && count == 1 && args[0] != Py_None) {
        length = small_length(args[0]);
        usual = length > 0;
    }
    if (usual)
        usual = has_no_limit(self, s_receive_timeout, timeout);
    if (usual < 0)
        return NULL;
    return usual ? make_call(&of_receive_some, self, NULL, length)
                 : call_python(&of_receive_some, self, args, count, names);
}

static PyObject *receive_into(PyObject *self, PyObject *const *args, Py_ssize_t count,
                              PyObject *names)
{
    PyObject *timeout = NULL;
    int usual = count == 1 && find_timeout(args, count, names, &timeout);

    if (usual)
        usual = has_no_limit(self, s_receive_timeout, timeout);
    if (usual < 0)
        return NULL;
    return usual ? make_call(&of_receive_into, self, args[0], 0)
                 : call_python(&of_receive_into, self, args, count, names);
}

static PyObject *send_all(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *timeout = NULL, *cork;
    int usual = count == 1 && find_timeout(args, count, names, &timeout);

    if (usual)
        usual = has_no_limit(self, s_send_timeout, timeout);
    if (usual > 0) {
        cork = PyObject_GetAttr(self, s_cork);
        usual = cork == NULL ? -1 : cork == Py_None;
        Py_XDECREF(cork);
    }
    if (usual < 0)
        return NULL;
    return usual ? make_call(&of_send_all, self, args[0], 0)
                 : call_python(&of_send_all, self, args, count, names);
}

/* -- of sockets */

static PyObject *recv(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t length = count == 1 && names == NULL ? small_length(args[0]) : 0;

    return length ? make_call(&of_recv, self, NULL, length)
                  : call_python(&of_recv, self, args, count, names);
}

static PyObject *recv_into(PyObject *self, PyObject *const *args, Py_ssize_t count,
                           PyObject *names)
{
    return count == 1 && names == NULL ? make_call(&of_recv_into, self, args[0], 0)
                                       : call_python(&of_recv_into, self, args, count, names);
}

static PyObject *send(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    return count == 1 && names == NULL ? make_call(&of_send, self, args[0], 0)
                                       : call_python(&of_send, self, args, count, names);
}

/* -- putting them into their classes */

/* The text of `help`, with the signature that inspect looks for. It is kept for ever. */
static const char *make_doc(Method *method)
{
    PyObject *doc = PyObject_GetAttrString(method->in_python, "__doc__"), *text = NULL;

    if (doc != NULL)
        text = PyUnicode_FromFormat("%s%s\n--\n\n%S", method->definition.ml_name,
                                    method->signature, doc);
    Py_XDECREF(doc);
    return text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
}

static int put_into(PyObject *class, Method *method)
{
    PyObject *descriptor;
    int result = -1;

    method->in_python = PyObject_GetAttrString(class, method->definition.ml_name);
    method->rest = PyObject_GetAttrString(class, method->rest_name);
    if (method->in_python == NULL || method->rest == NULL)
        return -1;
    method->definition.ml_doc = make_doc(method);
    if (method->definition.ml_doc == NULL)
        return -1;
    descriptor = PyDescr_NewMethod((PyTypeObject *)class, &method->definition);
    if (descriptor != NULL)
        result = PyObject_SetAttrString(class, method->definition.ml_name, descriptor);
    Py_XDECREF(descriptor);
    return result;
}

/* use_methods(phase, adapt, receive_side, send_side): puts the methods of streams into their
 * classes, in the place of those in Python. Operations begin while their engine is in that phase.
 */
PyObject *use_methods(PyObject *module, PyObject *arguments)
{
    PyObject *receive_side, *send_side, *phase, *function;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOO!O!:use_methods", &phase, &function, &PyType_Type,
                          &receive_side, &PyType_Type, &send_side)
        || put_into(receive_side, &of_receive_some) < 0
        || put_into(receive_side, &of_receive_into) < 0 || put_into(send_side, &of_send_all) < 0)
        return NULL;
    Py_INCREF(phase);
    put(&running, phase);
    Py_INCREF(function);
    put(&adapt, function);
    Py_RETURN_NONE;
}

/* use_socket_methods(class): the same, of sockets. */
PyObject *use_socket_methods(PyObject *module, PyObject *class)
{
    (void)module;
    if (!PyType_Check(class)) {
        PyErr_SetString(PyExc_TypeError, "use_socket_methods takes a class");
        return NULL;
    }
    if (put_into(class, &of_recv) < 0 || put_into(class, &of_recv_into) < 0
        || put_into(class, &of_send) < 0)
        return NULL;
    Py_RETURN_NONE;
}

int make_methods(void)
{
    const Name names[] = {
        {&s_cork, "_cork"}, {&s_receive_timeout, "receive_timeout"},
        {&s_send_timeout, "send_timeout"}, {&s_timeout, "timeout"},
    };

    no_limit = Py_BuildValue("{sd}", "timeout", (double)INFINITY);
    return no_limit == NULL ? -1 : make_names(names, COUNT(names));
}
