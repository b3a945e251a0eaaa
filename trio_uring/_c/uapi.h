/* What ring.c needs of the kernel's header linux/io_uring.h.
 *
 * It is declared here because the build machine's header may be too old, or missing: that of
 * manylinux2014 is of Linux 3.10. The kernel never changes this interface.
 *
 * Rules of this file: only what is used. Names are the kernel's, with tu_ in place of io_uring_.
 * tests/installing compares it with the kernel's header where there is one.
 */
#ifndef TRIO_URING_UAPI_H
#define TRIO_URING_UAPI_H

#include <stddef.h>
#include <stdint.h>

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

/* Where mmap(2) finds the parts of a ring. */
#define TU_OFF_SQ_RING UINT64_C(0)
#define TU_OFF_CQ_RING UINT64_C(0x8000000)
#define TU_OFF_SQES UINT64_C(0x10000000)

struct tu_sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len;
    uint32_t op_flags; /* a union of 32 bits: MSG_*, poll events, ... */
    uint64_t user_data;
    uint16_t buf_group, personality;
    uint32_t unused[5];
};

struct tu_cqe { uint64_t user_data; int32_t res; uint32_t flags; };

struct tu_sqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t resv2;
};
struct tu_cqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t resv2;
};
struct tu_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct tu_sqring_offsets sq_off;
    struct tu_cqring_offsets cq_off;
};

_Static_assert(sizeof(struct tu_sqe) == 64, "unexpected size of a submission queue entry");
_Static_assert(sizeof(struct tu_cqe) == 16, "unexpected size of a completion queue entry");
_Static_assert(sizeof(struct tu_params) == 120, "unexpected size of struct io_uring_params");

#endif
