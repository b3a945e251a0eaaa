/* The boundary between Python and the kernel's rings. cffi reads this very file and the C files
 * include it, so each declaration is written once.
 *
 * Rules of this file: C decides nothing. It writes the entries that it is told to write and copies
 * the completions that it finds; which operation, which buffer and when are decided in _ring.
 * No Python, no callbacks, no allocation after tu_open. Every function returns a value >= 0 or
 * -errno. Only the thread that opened a ring may use it.
 */

typedef struct tu_ring tu_ring;

struct tu_info {
    int fd;                /* the ring */
    uint32_t setup_flags;  /* IORING_SETUP_*, as the kernel accepted them */
    uint32_t features;     /* IORING_FEAT_* */
    uint32_t sq_entries;
    uint32_t cq_entries;
};

/* What one SENDMSG or WRITEV points at: allocated by Python, filled by tu_vector_*, read by the
 * kernel. */
struct tu_vector {
    uint64_t msghdr[7];    /* a struct msghdr; ring.c asserts that it fits */
    uint64_t iov[];        /* pairs of address and length: struct iovec */
};

int tu_open(tu_ring **out, unsigned sq_entries, unsigned cq_entries, unsigned setup_flags,
            struct tu_info *info);
int tu_close(tu_ring *ring);
/* For a forked child, which has no mappings: only closes the descriptor and frees our memory. */
int tu_disown(tu_ring *ring);
int tu_probe(tu_ring *ring, uint8_t *supported, unsigned count);

/* Registers a group of `count` provided buffers of `size` bytes at `memory`, with the ids
 * first_id .. first_id + count - 1. */
int tu_buffers(tu_ring *ring, unsigned group, unsigned first_id, unsigned count, unsigned size,
               char *memory);
/* Anonymous memory, not mapped in forked children; NULL: there is none. */
char *tu_pool_alloc(size_t bytes);
int tu_pool_free(char *memory, size_t bytes);

/* The part of an operation's struct io_uring_sqe that is the same in each submission. */
struct tu_entry {
    uint64_t head;         /* opcode | flags << 8 | ioprio << 16 | fd << 32 */
    uint64_t off;
    uint32_t op_flags;
    uint32_t buf_group;
};

int tu_submit(tu_ring *ring, struct tu_entry *entry, void *addr, unsigned len, uint64_t token);
/* Writes an ASYNC_CANCEL; the token of its own completion is target | 1 << 63. */
int tu_cancel(tu_ring *ring, uint64_t target);
int tu_watch(tu_ring *ring, int fd, uint64_t token);   /* one completion when fd is readable */
/* Fills it with two buffers, like a header and a body: what most lists are. */
int tu_vector_pair(struct tu_vector *vector, void *first, size_t first_length, void *second,
                   size_t second_length);
/* Fills it with `count` buffers, skipping the first `start` bytes of the first one. */
int tu_vector_fill(struct tu_vector *vector, unsigned count, void **addrs, const size_t *lengths,
                   size_t start);

int tu_sq_space(tu_ring *ring);
/* Gives back every buffer that was reported, then enters. Returns the number of entries taken.
 * seconds < 0: no timeout. */
int tu_enter(tu_ring *ring, unsigned min_complete, unsigned enter_flags, double seconds);

/* Copies at most max completions and returns how many. out[0] = tu_more; out[1] is left alone; then
 * token, res and flags of each completion. */
int tu_drain(tu_ring *ring, int64_t *out, unsigned max);
/* tu_enter and then tu_drain: out[1] = what tu_enter returns. */
int tu_turn(tu_ring *ring, unsigned min_complete, unsigned enter_flags, double seconds,
            int64_t *out, unsigned max);
/* Bit 0: completions are ready; bit 1: task work waits for an enter(GETEVENTS); bit 2: completions
 * on the overflow list do. */
int tu_more(tu_ring *ring);
int tu_overflowed(tu_ring *ring);       /* completions that the kernel dropped, out of memory */

#define TU_TRIES_SETUP 1
#define TU_TRIES_REGISTER 2
#define TU_TRIES_ENTER 3
#define TU_TRIED 4

/* Starts a child that makes io_uring's three system calls and exits (probe.c); returns its pid.
 * *stage, which must be shared memory and 0 before, says how far the child has come. The child
 * sends no SIGCHLD, and stays until it is waited for with __WALL. */
int tu_try_calls(uint8_t *stage);

/* Enables a ring that was opened with IORING_SETUP_R_DISABLED. From then on it takes no opcodes but
 * these, and registers nothing (restrict.c). An error if the kernel agrees and does not do it. */
int tu_restrict(int fd, const uint8_t *opcodes, unsigned count);
