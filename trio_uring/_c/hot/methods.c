/* receive_some, receive_into and send_all of the streams: methods that make calls.
 *
 * They are put into the classes of Python (`use_method`), in the place of the coroutine functions
 * that say the same, which are kept for what is unusual.
 *
 * Rules of this file: a method only looks at its arguments. Those that it does not understand go to
 * Python as they are, so that errors are found there.
 */
#include "hot.h"

#include <math.h>

#define RECEIVE_MAX (1 << 30) /* bytes, as in _streams/receive.py */

static PyObject *receive_some(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
static PyObject *receive_into(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
static PyObject *send_all(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL | METH_KEYWORDS, NULL}

Method of_receive = {
    METHOD(receive_some), "($self, max_bytes=None, *, timeout=None)", "_receive_rest", NULL, NULL,
};
Method of_into = {
    METHOD(receive_into), "($self, buffer, *, timeout=None)", "_into_rest", NULL, NULL,
};
Method of_send = {
    METHOD(send_all), "($self, data, *, timeout=None)", "_send_rest", NULL, NULL,
};

static PyObject *s_cork, *s_receive_timeout, *s_send_timeout, *s_timeout;
static PyObject *no_limit; /* {"timeout": math.inf} */

static Method *method_of(Call *call)
{
    if (call->kind == RECEIVE)
        return &of_receive;
    return call->kind == INTO ? &of_into : &of_send;
}

/* The whole call, as a coroutine of Python. Its time limit, if any, is no affair of ours. */
PyObject *python_call(Call *call)
{
    PyObject *arguments, *coroutine;

    if (call->kind == RECEIVE)
        arguments = Py_BuildValue("(On)", call->stream, call->length);
    else
        arguments = Py_BuildValue("(OO)", call->stream, call->data);
    if (arguments == NULL)
        return NULL;
    coroutine = PyObject_Call(method_of(call)->in_python, arguments, no_limit);
    Py_DECREF(arguments);
    return coroutine;
}

/* An attribute of the method in Python: its name. */
PyObject *name_of(Call *call, const char *which)
{
    return PyObject_GetAttrString(method_of(call)->in_python, which);
}

void warn_never_awaited(Call *call)
{
    PyObject *type, *value, *traceback, *name;

    PyErr_Fetch(&type, &value, &traceback);
    name = name_of(call, "__qualname__");
    if (name == NULL || PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                                         "coroutine '%U' was never awaited", name) < 0)
        PyErr_WriteUnraisable(call->stream);
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

static PyObject *receive_some(PyObject *self, PyObject *const *args, Py_ssize_t count,
                              PyObject *names)
{
    PyObject *timeout = NULL;
    Py_ssize_t length = RECEIVE_MAX;
    int usual = count <= 1 && find_timeout(args, count, names, &timeout);

    if (usual && count == 1 && args[0] != Py_None) {
        length = PyLong_CheckExact(args[0]) ? PyLong_AsSsize_t(args[0]) : 0;
        PyErr_Clear();
        usual = length > 0;
    }
    if (usual)
        usual = has_no_limit(self, s_receive_timeout, timeout);
    if (usual < 0)
        return NULL;
    return usual ? make_call(RECEIVE, self, NULL, length)
                 : call_python(&of_receive, self, args, count, names);
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
    return usual ? make_call(INTO, self, args[0], 0)
                 : call_python(&of_into, self, args, count, names);
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
    return usual ? make_call(SEND, self, args[0], 0)
                 : call_python(&of_send, self, args, count, names);
}

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

/* use_methods(receive_side, send_side, phase, adapt): puts the methods into the classes, in the
 * place of those in Python. Operations begin while their engine is in that phase. */
PyObject *use_methods(PyObject *module, PyObject *arguments)
{
    PyObject *receive_side, *send_side, *phase, *function;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!OO:use_methods", &PyType_Type, &receive_side,
                          &PyType_Type, &send_side, &phase, &function)
        || put_into(receive_side, &of_receive) < 0 || put_into(receive_side, &of_into) < 0
        || put_into(send_side, &of_send) < 0)
        return NULL;
    Py_INCREF(phase);
    put(&running, phase);
    Py_INCREF(function);
    put(&adapt, function);
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
