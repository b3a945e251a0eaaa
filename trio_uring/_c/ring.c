/* The raw io_uring interface: sets up and maps a ring, writes entries, enters the kernel, copies
 * completions, keeps the provided buffers.
 *
 * Rules of this file: those of ring.h. The kernel and this process share the heads and tails: our
 * own index is read plainly, the kernel's with acquire, and what we publish is stored with release
 * (io_uring(7)). The constants below are those of the uapi; they are defined here because the build
 * machine's header may be too old to have them.
 */
#if !defined(__linux__)
#error "trio_uring builds on Linux only: io_uring is a Linux interface"
#endif
#if !defined(__x86_64__) && !defined(__aarch64__)
#error "trio_uring supports x86-64 and aarch64 only: its memory ordering is verified on no other"
#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"
#include "uapi.h"

#define TU_OF_CANCEL (UINT64_C(1) << 63)

/* Not named like the uapi's: most of those are enumerators, which #ifndef cannot test. */
enum {
    TU_OP_POLL_ADD = 6,
    TU_OP_ASYNC_CANCEL = 14,
    TU_REGISTER_PROBE = 8,
    TU_REGISTER_PBUF_RING = 22,
    TU_ENTER_EXT_ARG = 1 << 3,      /* 5.11 */
    TU_SETUP_CQSIZE = 1 << 3,       /* 5.5 */
    TU_FEAT_SINGLE_MMAP = 1 << 0,   /* 5.4 */
    TU_SQ_CQ_OVERFLOW = 1 << 1,     /* 5.8 */
    TU_SQ_TASKRUN = 1 << 2,         /* 5.19 */
    TU_CQE_F_BUFFER = 1 << 0,       /* 5.7 */
    TU_CQE_BUFFER_SHIFT = 16,
    TU_GROUPS_MAX = 4,
    TU_PROBE_OPS = 256
};

/* The uapi's struct io_uring_buf and io_uring_buf_reg (5.19), io_uring_probe_op and io_uring_probe
 * (5.6), and io_uring_getevents_arg (5.11). */
struct tu_buf { uint64_t addr; uint32_t len; uint16_t bid; uint16_t tail; };
struct tu_buf_reg {
    uint64_t addr; uint32_t entries; uint16_t bgid; uint16_t flags; uint64_t resv[3];
};
struct tu_probe_op { uint8_t op; uint8_t resv; uint16_t flags; uint32_t resv2; };
struct tu_probe {
    uint8_t last_op, ops_len; uint16_t resv; uint32_t resv2[3];
    struct tu_probe_op ops[TU_PROBE_OPS];
};
struct tu_getevents_arg { uint64_t sigmask; uint32_t sigmask_sz, pad; uint64_t ts; };

_Static_assert(sizeof(struct msghdr) == 7 * sizeof(uint64_t), "struct msghdr must be seven words");
_Static_assert(sizeof(struct iovec) == 2 * sizeof(uint64_t), "struct iovec must be two words");

struct tu_group {
    /* Shared with the kernel: entries, and the tail in the first entry's last field. */
    struct tu_buf *ring;
    char *memory;
    size_t map_bytes;
    unsigned first_id, count, size;
    uint16_t tail;
};

struct tu_ring {
    int fd;
    void *sq_map, *cq_map;
    struct tu_sqe *sqes;
    size_t sq_bytes, cq_bytes, sqe_bytes;
    _Atomic uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail, *cq_overflow;
    struct tu_cqe *cqes;
    uint32_t sq_mask, cq_mask, sq_entries;
    uint32_t tail;             /* our own tail: entries written; published by tu_enter */
    struct tu_group groups[TU_GROUPS_MAX];
    unsigned group_count;
    unsigned out_count;        /* buffers reported by tu_drain and not yet recycled */
    unsigned out_max;
    uint16_t *out_ids;
};

static int sys_register(int fd, unsigned opcode, void *arg, unsigned count) {
    return syscall(__NR_io_uring_register, fd, opcode, arg, count) < 0 ? -errno : 0;
}

static void *map_shared(int fd, size_t bytes, uint64_t offset) {
    int flags = MAP_SHARED | MAP_POPULATE;
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
    if (at == MAP_FAILED)
        return NULL;
    /* Forked children do not get the mapping: one that touched the ring would submit in the
     * parent's name. */
    (void)madvise(at, bytes, MADV_DONTFORK);
    return at;
}

static int map_rings(tu_ring *ring, const struct tu_params *p) {
    ring->sq_bytes = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    ring->cq_bytes = p->cq_off.cqes + p->cq_entries * sizeof(struct tu_cqe);
    ring->sqe_bytes = p->sq_entries * sizeof(struct tu_sqe);
    if (p->features & TU_FEAT_SINGLE_MMAP && ring->cq_bytes > ring->sq_bytes)
        ring->sq_bytes = ring->cq_bytes;
    ring->sq_map = map_shared(ring->fd, ring->sq_bytes, TU_OFF_SQ_RING);
    if (ring->sq_map == NULL)
        return -errno;
    if (p->features & TU_FEAT_SINGLE_MMAP)
        ring->cq_map = ring->sq_map;
    else if ((ring->cq_map = map_shared(ring->fd, ring->cq_bytes, TU_OFF_CQ_RING)) == NULL)
        return -errno;
    ring->sqes = map_shared(ring->fd, ring->sqe_bytes, TU_OFF_SQES);
    return ring->sqes == NULL ? -errno : 0;
}

#define AT(map, offset) ((void *)((char *)(map) + (offset)))

static void locate(tu_ring *ring, const struct tu_params *p) {
    uint32_t *array = AT(ring->sq_map, p->sq_off.array);
    ring->sq_head = AT(ring->sq_map, p->sq_off.head);
    ring->sq_tail = AT(ring->sq_map, p->sq_off.tail);
    ring->sq_flags = AT(ring->sq_map, p->sq_off.flags);
    ring->cq_head = AT(ring->cq_map, p->cq_off.head);
    ring->cq_tail = AT(ring->cq_map, p->cq_off.tail);
    ring->cq_overflow = AT(ring->cq_map, p->cq_off.overflow);
    ring->cqes = AT(ring->cq_map, p->cq_off.cqes);
    ring->sq_mask = *(uint32_t *)AT(ring->sq_map, p->sq_off.ring_mask);
    ring->cq_mask = *(uint32_t *)AT(ring->cq_map, p->cq_off.ring_mask);
    ring->sq_entries = p->sq_entries;
    for (uint32_t i = 0; i < p->sq_entries; i++)    /* index i of the queue is always entry i */
        array[i] = i;
}

int tu_open(tu_ring **out, unsigned sq_entries, unsigned cq_entries, unsigned setup_flags,
            struct tu_info *info) {
    struct tu_params p;
    tu_ring *ring = calloc(1, sizeof *ring);
    int result;
    *out = NULL;
    if (ring == NULL)
        return -ENOMEM;
    memset(&p, 0, sizeof p);
    p.flags = setup_flags;
    if (setup_flags & TU_SETUP_CQSIZE)
        p.cq_entries = cq_entries;
    /* The kernel sets close-on-exec. */
    ring->fd = (int)syscall(__NR_io_uring_setup, sq_entries, &p);
    result = ring->fd < 0 ? -errno : map_rings(ring, &p);
    if (result < 0) {
        (void)tu_close(ring);
        return result;
    }
    locate(ring, &p);
    info->fd = ring->fd;
    info->setup_flags = p.flags;
    info->features = p.features;
    info->sq_entries = p.sq_entries;
    info->cq_entries = p.cq_entries;
    *out = ring;
    return 0;
}

int tu_disown(tu_ring *ring) {
    if (ring->fd >= 0)
        (void)close(ring->fd);
    free(ring->out_ids);
    free(ring);
    return 0;
}

int tu_close(tu_ring *ring) {
    if (ring->sqes != NULL)
        (void)munmap(ring->sqes, ring->sqe_bytes);
    if (ring->cq_map != NULL && ring->cq_map != ring->sq_map)
        (void)munmap(ring->cq_map, ring->cq_bytes);
    if (ring->sq_map != NULL)
        (void)munmap(ring->sq_map, ring->sq_bytes);
    for (unsigned i = 0; i < ring->group_count; i++)
        (void)munmap(ring->groups[i].ring, ring->groups[i].map_bytes);
    return tu_disown(ring);
}

int tu_probe(tu_ring *ring, uint8_t *supported, unsigned count) {
    struct tu_probe probe;
    int result;
    memset(&probe, 0, sizeof probe);
    memset(supported, 0, count);
    result = sys_register(ring->fd, TU_REGISTER_PROBE, &probe, TU_PROBE_OPS);
    for (unsigned i = 0; result >= 0 && i < probe.ops_len && i < count; i++)
        supported[i] = probe.ops[i].flags & 1;      /* IO_URING_OP_SUPPORTED */
    return result;
}

/* ---- provided buffers ---- */

char *tu_pool_alloc(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    (void)madvise(at, bytes, MADV_DONTFORK);
    return at;
}

int tu_pool_free(char *memory, size_t bytes) {
    return munmap(memory, bytes) < 0 ? -errno : 0;
}

static void group_put(struct tu_group *group, unsigned index) {
    struct tu_buf *slot = &group->ring[group->tail & (group->count - 1)];
    slot->addr = (uint64_t)(uintptr_t)(group->memory + (size_t)index * group->size);
    slot->len = group->size;
    slot->bid = (uint16_t)(group->first_id + index);
    group->tail++;
}

static void group_publish(struct tu_group *group) {
    _Atomic uint16_t *tail = (_Atomic uint16_t *)&group->ring[0].tail;
    atomic_store_explicit(tail, group->tail, memory_order_release);
}

int tu_buffers(tu_ring *ring, unsigned group_id, unsigned first_id, unsigned count, unsigned size,
               char *memory) {
    struct tu_buf_reg reg;
    struct tu_group *group = &ring->groups[ring->group_count];
    uint16_t *ids;
    int result;
    if (ring->group_count == TU_GROUPS_MAX || first_id + count > UINT16_MAX)
        return -EINVAL;
    if (count == 0 || (count & (count - 1)))
        return -EINVAL;
    if ((ids = realloc(ring->out_ids, (ring->out_max + count) * sizeof *ids)) == NULL)
        return -ENOMEM;
    ring->out_ids = ids;
    memset(group, 0, sizeof *group);
    group->map_bytes = count * sizeof(struct tu_buf);
    group->ring = (void *)tu_pool_alloc(group->map_bytes);
    if (group->ring == NULL)
        return -ENOMEM;
    memset(&reg, 0, sizeof reg);
    reg.addr = (uint64_t)(uintptr_t)group->ring;
    reg.entries = count;
    reg.bgid = (uint16_t)group_id;
    if ((result = sys_register(ring->fd, TU_REGISTER_PBUF_RING, &reg, 1)) < 0) {
        (void)munmap(group->ring, group->map_bytes);
        return result;
    }
    group->memory = memory;
    group->first_id = first_id;
    group->count = count;
    group->size = size;
    for (unsigned i = 0; i < count; i++)
        group_put(group, i);
    group_publish(group);
    ring->out_max += count;
    ring->group_count++;
    return 0;
}

/* Gives every buffer that tu_drain has reported back to the kernel. */
static void recycle(tu_ring *ring) {
    unsigned count = ring->out_count;
    for (unsigned i = 0; i < count; i++) {
        for (unsigned g = 0; g < ring->group_count; g++) {
            struct tu_group *group = &ring->groups[g];
            /* Below first_id this wraps to a large number. */
            unsigned index = ring->out_ids[i] - group->first_id;
            if (index < group->count)
                group_put(group, index);
        }
    }
    for (unsigned g = 0; count && g < ring->group_count; g++)
        group_publish(&ring->groups[g]);
    ring->out_count = 0;
}

/* ---- submission ---- */

static struct tu_sqe *next_entry(tu_ring *ring) {
    uint32_t head = atomic_load_explicit(ring->sq_head, memory_order_acquire);
    struct tu_sqe *sqe;
    if (ring->tail - head >= ring->sq_entries)
        return NULL;
    sqe = &ring->sqes[ring->tail & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    ring->tail++;
    return sqe;
}

int tu_submit(tu_ring *ring, struct tu_entry *entry, void *addr, unsigned len, uint64_t token) {
    struct tu_sqe *sqe = next_entry(ring);
    if (sqe == NULL)
        return -EBUSY;
    /* Both architectures that we build for are little-endian. */
    memcpy(sqe, &entry->head, sizeof entry->head);
    sqe->off = entry->off;
    sqe->addr = (uint64_t)(uintptr_t)addr;
    sqe->len = len;
    sqe->op_flags = entry->op_flags;
    sqe->buf_group = (uint16_t)entry->buf_group;
    sqe->user_data = token;
    return 0;
}

int tu_cancel(tu_ring *ring, uint64_t target) {
    struct tu_sqe *sqe = next_entry(ring);
    if (sqe == NULL)
        return -EBUSY;
    sqe->opcode = TU_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = target;
    sqe->user_data = target | TU_OF_CANCEL;
    return 0;
}

int tu_watch(tu_ring *ring, int fd, uint64_t token) {
    struct tu_sqe *sqe = next_entry(ring);
    if (sqe == NULL)
        return -EBUSY;
    sqe->opcode = TU_OP_POLL_ADD;
    sqe->fd = fd;
    sqe->op_flags = POLLIN;
    sqe->user_data = token;
    return 0;
}

int tu_vector_pair(struct tu_vector *vector, void *first, size_t first_length, void *second,
                   size_t second_length) {
    void *addrs[2] = {first, second};
    size_t lengths[2] = {first_length, second_length};
    return tu_vector_fill(vector, 2, addrs, lengths, 0);
}

int tu_vector_fill(struct tu_vector *vector, unsigned count, void **addrs, const size_t *lengths,
                   size_t start) {
    for (unsigned index = 0; index < count; index++) {
        vector->iov[2 * index] = (uint64_t)(uintptr_t)addrs[index] + start;
        vector->iov[2 * index + 1] = lengths[index] - start;
        start = 0;
    }
    struct msghdr header;
    memset(&header, 0, sizeof header);
    header.msg_iov = (struct iovec *)(void *)vector->iov;
    header.msg_iovlen = count;
    memcpy(vector->msghdr, &header, sizeof header);
    return 0;
}

int tu_sq_space(tu_ring *ring) {
    uint32_t head = atomic_load_explicit(ring->sq_head, memory_order_acquire);
    return (int)(ring->sq_entries - (ring->tail - head));
}

int tu_enter(tu_ring *ring, unsigned min_complete, unsigned enter_flags, double seconds) {
    struct timespec ts;
    struct tu_getevents_arg arg;
    uint32_t head = atomic_load_explicit(ring->sq_head, memory_order_acquire);
    long result;
    if (ring->out_count)
        recycle(ring);
    atomic_store_explicit(ring->sq_tail, ring->tail, memory_order_release);
    if (seconds < 0) {
        result = syscall(__NR_io_uring_enter, ring->fd, ring->tail - head, min_complete,
                         enter_flags, NULL, 0);
    } else {
        memset(&arg, 0, sizeof arg);
        ts.tv_sec = (time_t)seconds;
        ts.tv_nsec = (long)((seconds - (double)ts.tv_sec) * 1e9);
        arg.ts = (uint64_t)(uintptr_t)&ts;
        result = syscall(__NR_io_uring_enter, ring->fd, ring->tail - head, min_complete,
                         enter_flags | TU_ENTER_EXT_ARG, &arg, sizeof arg);
    }
    return result < 0 ? -errno : (int)result;
}

/* ---- completion ---- */

int tu_more(tu_ring *ring) {
    uint32_t flags = atomic_load_explicit(ring->sq_flags, memory_order_acquire);
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    int more = head != atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    return more | (flags & TU_SQ_TASKRUN ? 2 : 0) | (flags & TU_SQ_CQ_OVERFLOW ? 4 : 0);
}

int tu_drain(tu_ring *ring, int64_t *out, unsigned max) {
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    unsigned count = 0;
    for (int64_t *to = out + 2; head != tail && count < max; head++, count++, to += 3) {
        const struct tu_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        if (cqe->flags & TU_CQE_F_BUFFER) {
            if (ring->out_count == ring->out_max)       /* cannot happen: each is out once */
                break;
            ring->out_ids[ring->out_count++] = (uint16_t)(cqe->flags >> TU_CQE_BUFFER_SHIFT);
        }
        to[0] = (int64_t)cqe->user_data;
        to[1] = cqe->res;
        to[2] = cqe->flags;
    }
    atomic_store_explicit(ring->cq_head, head, memory_order_release);
    out[0] = tu_more(ring);
    return (int)count;
}

int tu_turn(tu_ring *ring, unsigned min_complete, unsigned enter_flags, double seconds,
            int64_t *out, unsigned max) {
    out[1] = tu_enter(ring, min_complete, enter_flags, seconds);
    return tu_drain(ring, out, max);
}

int tu_overflowed(tu_ring *ring) {
    uint32_t lost = atomic_load_explicit(ring->cq_overflow, memory_order_acquire);
    return lost > INT_MAX ? INT_MAX : (int)lost;
}
