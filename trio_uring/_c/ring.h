/* The boundary between Python and the kernel's rings. cffi reads this file as it stands and ring.c includes it,
 * so a declaration is written once.
 *
 * Rules of this file: C is a pen, not a brain. It writes the entries it is told to write and copies the completions
 * it finds; which operation, which buffer and when are decided in _ring.py. No Python, no callbacks, no allocation
 * after tu_open. Every function returns a value >= 0 or -errno. Only the thread that opened a ring may call with it.
 */

typedef struct tu_ring tu_ring;

struct tu_info {
    int fd;                /* the ring */
    int event_fd;          /* signalled on completions, or -1: poll fd itself */
    uint32_t setup_flags;  /* IORING_SETUP_*, as the kernel took them */
    uint32_t features;     /* IORING_FEAT_* */
    uint32_t sq_entries;
    uint32_t cq_entries;
};

/* What one SENDMSG, RECVMSG, WRITEV or ACCEPT points at: made by Python, filled by tu_vector_*, borrowed by the kernel. */
struct tu_vector {
    uint64_t msghdr[7];    /* a struct msghdr; ring.c asserts that it fits */
    uint32_t name_length;  /* of an accepted socket's address; that of a message is in its msghdr */
    uint32_t padding;
    uint8_t name[128];     /* a struct sockaddr_storage */
    uint64_t iov[];        /* pairs of address and length: struct iovec */
};

int tu_open(tu_ring **out, unsigned sq_entries, unsigned cq_entries, unsigned setup_flags, int want_event_fd,
            struct tu_info *info);
int tu_close(tu_ring *ring);
int tu_disown(tu_ring *ring);           /* in a forked child: the maps are not there; close the descriptors only */
int tu_probe(tu_ring *ring, uint8_t *supported, unsigned count);

/* A ring of `count` provided buffers of `size` bytes at `memory`, with the ids first_id .. first_id + count - 1. */
int tu_buffers(tu_ring *ring, unsigned group, unsigned first_id, unsigned count, unsigned size, char *memory);
int tu_recycle(tu_ring *ring);          /* give back every buffer that tu_drain has reported; how many */
char *tu_pool_alloc(size_t bytes);      /* anonymous memory, absent in forked children; NULL when there is none */
int tu_pool_free(char *memory, size_t bytes);

/* What is the same each time that an operation is submitted: the first words of its struct io_uring_sqe. */
struct tu_entry {
    uint64_t head;         /* opcode | flags << 8 | ioprio << 16 | fd << 32 */
    uint64_t off;
    uint32_t op_flags;
    uint32_t buf_group;
};

int tu_submit(tu_ring *ring, struct tu_entry *entry, void *addr, unsigned len, uint64_t token);
int tu_cancel(tu_ring *ring, uint64_t target);      /* ASYNC_CANCEL by user_data; its own completion has token 0 */
/* Fills it with two buffers: a header and a body, what most lists are. */
int tu_vector_pair(struct tu_vector *vector, void *first, size_t first_length, void *second, size_t second_length);
/* Fills it with `count` buffers, of which the first begins at byte `start`. */
int tu_vector_fill(struct tu_vector *vector, unsigned count, void **addrs, const size_t *lengths, size_t start);

/* Gives a message an address of name_length bytes, and control data: to be sent, or room for what is received. */
int tu_vector_message(struct tu_vector *vector, unsigned name_length, void *control, size_t control_length);
/* What the kernel wrote into a received message: out[0] bytes of address, out[1] of control data, out[2] MSG_* flags. */
int tu_vector_received(struct tu_vector *vector, int64_t *out);

int tu_sq_space(tu_ring *ring);
int tu_buffers_in_use(tu_ring *ring);   /* reported by tu_drain, not yet recycled */
int tu_enter(tu_ring *ring, unsigned min_complete, unsigned enter_flags, int64_t timeout_ns);   /* entries taken */

/* Copies at most max completions: out[0] = tu_more, then token, res, flags of each. */
int tu_drain(tu_ring *ring, int64_t *out, unsigned max);
/* bit 0: completions are ready; bit 1: task work waits for an enter(GETEVENTS); bit 2: the overflow list does */
int tu_more(tu_ring *ring);
int tu_overflowed(tu_ring *ring);       /* completions the kernel dropped for want of memory */
int tu_event_read(tu_ring *ring);
int tu_timer(int64_t interval_ns);      /* a timerfd that fires every interval_ns; its descriptor */

#define TU_AGAIN 1       /* not the first attempt: a connect that has begun is asked for its end */
#define TU_MAY_BLOCK 2   /* for descriptors that cannot be waited for: regular files */

/* What an entry stands for, as a system call, now (attempt.c): its result; -EINPROGRESS: not ready, to be attempted AGAIN when
 * the descriptor is; or -errno, of which -EAGAIN is a Unix connect's that found the backlog full. */
int tu_attempt(struct tu_entry *entry, void *addr, unsigned len, int flags);
