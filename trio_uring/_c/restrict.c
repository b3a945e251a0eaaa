/* Restricts a ring to the operations that it is for.
 *
 * Rules of this file: those of ring.h. The kernel is not taken at its word: what it said is tried.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ring.h"
#include "uapi.h"

enum {
    TU_UNREGISTER_BUFFERS = 1,        /* 5.1 */
    TU_REGISTER_RESTRICTIONS = 11,    /* 5.10 */
    TU_REGISTER_ENABLE_RINGS = 12,    /* 5.10 */
    TU_ALLOW_REGISTER = 0,            /* IORING_RESTRICTION_* */
    TU_ALLOW_OPCODE = 1,
    TU_ALLOW_FLAGS = 2,
    TU_SQE_BUFFER_SELECT = 1 << 5,
    TU_RULES_MAX = 66                 /* 64 opcodes, the flags, and what may be registered */
};

/* The uapi's struct io_uring_restriction (5.10). */
struct tu_restriction { uint16_t kind; uint8_t what; uint8_t resv; uint32_t resv2[3]; };

_Static_assert(sizeof(struct tu_restriction) == 16, "unexpected size of a restriction");

static int call(int fd, unsigned opcode, void *arg, unsigned count) {
    return syscall(__NR_io_uring_register, fd, opcode, arg, count) < 0 ? -errno : 0;
}

int tu_restrict(int fd, const uint8_t *opcodes, unsigned count) {
    struct tu_restriction rules[TU_RULES_MAX];
    int result;
    if (count > TU_RULES_MAX - 2)
        return -EINVAL;
    memset(rules, 0, sizeof rules);
    for (unsigned i = 0; i < count; i++) {
        rules[i].kind = TU_ALLOW_OPCODE;
        rules[i].what = opcodes[i];
    }
    rules[count].kind = TU_ALLOW_FLAGS;
    rules[count].what = TU_SQE_BUFFER_SELECT;
    /* Newer kernels restrict registering only if there is a rule for it. This one allows nothing
     * later: a ring that is enabled cannot be enabled again. */
    rules[count + 1].kind = TU_ALLOW_REGISTER;
    rules[count + 1].what = TU_REGISTER_ENABLE_RINGS;
    result = call(fd, TU_REGISTER_RESTRICTIONS, rules, count + 2);
    if (result >= 0)
        result = call(fd, TU_REGISTER_ENABLE_RINGS, NULL, 0);
    if (result < 0)
        return result;
    /* There are no buffers: a ring that is not restricted says that (ENXIO). */
    result = call(fd, TU_UNREGISTER_BUFFERS, NULL, 0);
    return result == -EACCES ? 0 : -EOPNOTSUPP;
}
