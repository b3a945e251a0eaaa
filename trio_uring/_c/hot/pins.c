/* What an entry points at, and what keeps it there: entries.py of _ring.
 *
 * Rules of this file: rule S1 of _ring/base.py. A bytes object is its own pin. Of anything else the
 * pin is a memoryview of our own: while it exists, what it was made of can be neither resized nor
 * freed, and nobody else can release it.
 */
#include "hot.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define OP_WRITEV 2 /* as in _ring/opcodes.py */

/* These two are deprecated, because they give no pin. Here the view is the pin, and the buffer
 * protocol itself is not in the limited API before 3.11. The headers have not had them since 3.13,
 * but they are in the stable ABI for good. */
#if PY_VERSION_HEX >= 0x030D0000
PyAPI_FUNC(int) PyObject_AsReadBuffer(PyObject *, const void **, Py_ssize_t *);
PyAPI_FUNC(int) PyObject_AsWriteBuffer(PyObject *, void **, Py_ssize_t *);
#endif

static int find_address(PyObject *view, int writable, char **at, Py_ssize_t *length)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    if (writable)
        return PyObject_AsWriteBuffer(view, (void **)at, length);
    return PyObject_AsReadBuffer(view, (const void **)at, length);
#pragma GCC diagnostic pop
}

PyObject *pin_buffer(PyObject *buffer, int writable, char **at, Py_ssize_t *length)
{
    PyObject *view;

    if (PyBytes_CheckExact(buffer) && !writable) {
        *at = PyBytes_AsString(buffer);
        *length = PyBytes_Size(buffer);
        Py_INCREF(buffer);
        return buffer;
    }
    view = PyMemoryView_FromObject(buffer);
    if (view == NULL)
        return NULL;
    if (find_address(view, writable, at, length) < 0)
        Py_CLEAR(view);
    return view;
}

/* The vector for sendmsg or writev, in a bytes object that keeps its memory. */
static struct iovec *make_vector(Py_ssize_t count, PyObject **block)
{
    struct msghdr *header;
    struct iovec *vector;

    *block = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizeof *header
                                                 + count * (Py_ssize_t)sizeof *vector);
    if (*block == NULL)
        return NULL;
    header = (struct msghdr *)(void *)PyBytes_AsString(*block);
    vector = (struct iovec *)(void *)(header + 1);
    memset(header, 0, sizeof *header);
    header->msg_iov = vector;
    header->msg_iovlen = (size_t)count;
    return vector;
}

/* Pins each buffer of a tuple, and fills the vector. The first item of the pins is its memory. */
static PyObject *pin_each(PyObject *buffers, Py_ssize_t start, struct iovec **vector)
{
    Py_ssize_t count = PyTuple_Size(buffers), length;
    PyObject *block, *pins, *pin = NULL;
    char *at;

    *vector = make_vector(count, &block);
    pins = *vector == NULL ? NULL : PyTuple_New(count + 1);
    if (pins == NULL) {
        Py_XDECREF(block);
        return NULL;
    }
    if (PyTuple_SetItem(pins, 0, block) < 0)
        Py_CLEAR(pins);
    for (Py_ssize_t i = 0; pins != NULL && i < count; i++) {
        pin = pin_buffer(PyTuple_GetItem(buffers, i), 0, &at, &length);
        if (pin == NULL || PyTuple_SetItem(pins, i + 1, pin) < 0) {
            Py_CLEAR(pins);
            break;
        }
        (*vector)[i].iov_base = at + start;
        (*vector)[i].iov_len = (size_t)(length - start);
        start = 0;
    }
    return pins;
}

static PyObject *pin_many(Operation *op, char **at, unsigned *length)
{
    struct iovec *vector;
    Py_ssize_t count;
    PyObject *pins;

    if (!PyTuple_CheckExact(op->buffers))
        return NULL;
    count = PyTuple_Size(op->buffers);
    pins = count > 0 && count <= IOV_MAX_ ? pin_each(op->buffers, op->start, &vector) : NULL;
    if (pins == NULL)
        return NULL;
    if (op->opcode == OP_WRITEV) {
        *at = (char *)vector;
        *length = (unsigned)count;
    } else {
        *at = (char *)vector - sizeof(struct msghdr);
        *length = 1;
    }
    return pins;
}

/* The entry's address and length, and the pin. NULL: C cannot tell, and Python has to try. */
PyObject *pin(Operation *op, char **at, unsigned *length)
{
    PyObject *pinned;
    Py_ssize_t size;

    if (op->length < 0 || op->length > UINT32_MAX)
        return NULL;
    *length = (unsigned)op->length;
    if (!is_none(op->buffers)) {
        pinned = pin_many(op, at, length);
    } else if (is_none(op->buffer)) {
        *at = NULL;
        Py_INCREF(Py_None);
        pinned = Py_None;
    } else {
        pinned = pin_buffer(op->buffer, 0, at, &size);
        *at = pinned == NULL ? NULL : *at + op->start;
    }
    if (pinned == NULL)
        PyErr_Clear();
    return pinned;
}
