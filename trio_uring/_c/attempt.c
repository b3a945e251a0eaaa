/* Operations without io_uring: the system call that an entry stands for, made now, and without waiting.
 *
 * Rules of this file: those of ring.h. The thread never blocks here, unless it is told that it may. No descriptor's mode is
 * changed for longer than one call: it may be shared with other processes.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ring.h"

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008    /* 4.14; on pipes 6.4 */
#endif

enum {      /* linux/io_uring.h; a build machine's header may be older than some */
    TU_OP_WRITEV = 2,
    TU_OP_POLL_ADD = 6,
    TU_OP_SENDMSG = 9,
    TU_OP_RECVMSG = 10,
    TU_OP_ACCEPT = 13,
    TU_OP_CONNECT = 16,
    TU_OP_READ = 22,
    TU_OP_WRITE = 23,
    TU_OP_SEND = 26,
    TU_OP_RECV = 27
};

static int poll_now(int fd, unsigned events) {
    struct pollfd asked = {fd, (short)events, 0};
    int count = poll(&asked, 1, 0);
    if (count < 0)
        return -errno;
    if (asked.revents & POLLNVAL)
        return -EBADF;
    return count == 0 ? -EAGAIN : (unsigned short)asked.revents;
}

static long transfer(int fd, const struct iovec *iov, unsigned count, int64_t offset, int writes) {
    if (offset < 0)
        return writes ? writev(fd, iov, (int)count) : readv(fd, iov, (int)count);
    return writes ? pwritev(fd, iov, (int)count, offset) : preadv(fd, iov, (int)count, offset);
}

/* What waits here are pipes and terminals, which have no MSG_DONTWAIT. Where there is no RWF_NOWAIT either, a read of what poll(2) has seen and a
 * write of PIPE_BUF bytes where it has seen room do not block, unless another process is quicker. */
static long transfer_now(int fd, const struct iovec *iov, unsigned count, int64_t offset, int writes) {
    struct iovec one;
    int ready;
    /* The offset's upper half is for 32-bit machines. */
    long result = syscall(writes ? __NR_pwritev2 : __NR_preadv2, fd, iov, count, offset, 0, RWF_NOWAIT);
    if (result >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL))
        return result;
    if ((ready = poll_now(fd, writes ? POLLOUT : POLLIN)) < 0) {
        errno = -ready;
        return -1;
    }
    for (; count > 1 && iov->iov_len == 0; count--)
        iov++;
    one = *iov;
    if (writes && one.iov_len > PIPE_BUF)
        one.iov_len = PIPE_BUF;
    return transfer(fd, &one, 1, offset, writes);
}

/* A position is nothing to a socket or a pipe, as with io_uring. */
static int read_or_write(int fd, const struct iovec *iov, unsigned count, int64_t offset, int writes, int may_block) {
    long (*make)(int, const struct iovec *, unsigned, int64_t, int) = may_block ? transfer : transfer_now;
    long result = make(fd, iov, count, offset, writes);
    if (result < 0 && errno == ESPIPE && offset >= 0)
        result = make(fd, iov, count, -1, writes);
    return result < 0 ? -errno : (int)result;
}

static int make_or_take_connection(int fd, int opcode, struct tu_entry *entry, void *addr) {
    int mode = fcntl(fd, F_GETFL), result;
    if (mode < 0 || (!(mode & O_NONBLOCK) && fcntl(fd, F_SETFL, mode | O_NONBLOCK) < 0))
        return -errno;
    if (opcode == TU_OP_CONNECT)
        result = connect(fd, addr, (socklen_t)entry->off);
    else
        result = accept4(fd, addr, (socklen_t *)(uintptr_t)entry->off, (int)entry->op_flags);
    if (result < 0)
        result = -errno;
    if (!(mode & O_NONBLOCK))
        (void)fcntl(fd, F_SETFL, mode);
    return result;
}

static long call(int opcode, int fd, struct tu_entry *entry, void *addr, unsigned len, int may_block) {
    int message_flags = (int)(entry->op_flags & ~(unsigned)MSG_WAITALL) | MSG_DONTWAIT;
    struct iovec one = {addr, len};
    long result;
    switch (opcode) {
    case TU_OP_SEND: result = send(fd, addr, len, message_flags); break;
    case TU_OP_RECV: result = recv(fd, addr, len, message_flags); break;
    case TU_OP_SENDMSG: result = sendmsg(fd, addr, message_flags); break;
    case TU_OP_RECVMSG: result = recvmsg(fd, addr, message_flags); break;
    case TU_OP_READ:
    case TU_OP_WRITE: return read_or_write(fd, &one, 1, (int64_t)entry->off, opcode == TU_OP_WRITE, may_block);
    case TU_OP_WRITEV: return read_or_write(fd, addr, len, (int64_t)entry->off, 1, may_block);
    case TU_OP_POLL_ADD: return poll_now(fd, entry->op_flags);
    case TU_OP_CONNECT:
    case TU_OP_ACCEPT: return make_or_take_connection(fd, opcode, entry, addr);
    default: return -EOPNOTSUPP;
    }
    return result < 0 ? -errno : result;
}

int tu_attempt(struct tu_entry *entry, void *addr, unsigned len, int flags) {
    int opcode = (int)(entry->head & 0xff), fd = (int)(uint32_t)(entry->head >> 32);
    long result;
    do
        result = call(opcode, fd, entry, addr, len, flags & TU_MAY_BLOCK);
    while (result == -EINTR);
    if (opcode != TU_OP_CONNECT)
        return result == -EAGAIN ? -EINPROGRESS : (int)result;
    if (flags & TU_AGAIN && result == -EISCONN)
        return 0;
    return flags & TU_AGAIN && result == -EALREADY ? -EINPROGRESS : (int)result;
}
