/* What loadgen.c is made of: its state, clocks, the histogram of latencies, numbers,
 * and how the figures are written. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND UINT64_C(1000000000)

enum {
    CONNECTIONS_MAX = 60000,
    MESSAGE_BYTES_MAX = 64 << 20, /* the pattern is held in memory */
    DEPTH_MAX = 64,
    ALARM_MARGIN_SECONDS = 60,    /* connecting and gathering, on a very busy machine */
    PATTERN_OFFSETS = 1021,       /* a prime: steps by connection and message never fall in phase */
    READ_CHUNK_BYTES = 256 << 10, /* stays in L2 */
    EVENT_BATCH = 512, SECONDS_MAX = 3600,
    WAIT_NS = 10 * 1000 * 1000,   /* how late a window can end when nothing happens at all */
    SUB_BITS = 8,                 /* histogram: 256 buckets an octave, 0.4 % wide */
    SUB_COUNT = 1 << SUB_BITS,
    BUCKETS = (64 - SUB_BITS + 1) * SUB_COUNT
};

struct histogram {
    uint64_t count[BUCKETS], all;
};

enum mode { ECHO, CONNECT, IN, OUT };
enum phase { GATHERING, WARMUP, COUNTING };

struct connection {
    int fd, in_fd; /* one socket, or a pair: sent on the one, received on the other */
    unsigned number;
    unsigned begun, sending, receiving; /* messages begun, sent whole, answered */
    size_t sent, received;              /* bytes of the ones that are under way */
    uint64_t started_ns[DEPTH_MAX];
    uint64_t counted; /* messages completed within the window */
};

struct load {
    struct sockaddr_in address;
    enum mode mode;
    size_t connections, message_bytes, reply_bytes;
    unsigned depth;
    bool framed, paired, datagrams, http, websocket;
    double rate, seconds, warmup_seconds;
    int epoll; /* edge-triggered: no epoll_ctl after the start */
    unsigned char *pattern, *scratch;
    const unsigned char *answer; /* how every answer begins; NULL where it is an echo */
    size_t answer_bytes;
    struct connection *all;
    struct connection **idle; /* where there is a rate: those that have nothing outstanding */
    size_t idle_count, live, outstanding;
    enum phase phase;
    bool issuing; /* false at the ends of the window, while what is outstanding comes back */
    uint64_t due_ns, random;
    uint64_t elapsed_ns, cpu_ns, bytes, messages, errors;
    struct histogram latencies;
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) != 0)
        die("clock_gettime");
    return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

/* xorshift: without a period that could hide a shifted chunk. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Log-linear, so microseconds and seconds are both known to 0.4 %. */
static void add_latency(struct histogram *histogram, uint64_t ns)
{
    size_t bucket = (size_t)ns;
    if (ns >= SUB_COUNT) {
        unsigned shift = 63U - (unsigned)__builtin_clzll(ns) - SUB_BITS;
        /* ns >> shift is in [SUB_COUNT, 2 * SUB_COUNT) */
        bucket = (size_t)shift * SUB_COUNT + (size_t)(ns >> shift);
    }
    histogram->count[bucket]++;
    histogram->all++;
}

static double bucket_middle_us(size_t bucket)
{
    if (bucket < SUB_COUNT)
        return (double)bucket / 1e3;
    unsigned shift = (unsigned)(bucket / SUB_COUNT) - 1;
    return ((double)(bucket % SUB_COUNT + SUB_COUNT) + 0.5) * (double)(UINT64_C(1) << shift) / 1e3;
}

static double percentile_us(const struct histogram *histogram, double share)
{
    size_t bucket = 0;
    uint64_t seen = histogram->count[0];
    while (bucket + 1 < BUCKETS && (double)seen < share * (double)histogram->all)
        seen += histogram->count[++bucket];
    return bucket_middle_us(bucket);
}

/* A number in [low, high], or the end of the program. */
static double parse_number(const char *text, const char *name, double low, double high)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= low && value <= high)) {
        fprintf(stderr, "loadgen: %s must be a number from %g to %g, not '%s'\n", name, low, high,
                text);
        exit(EXIT_FAILURE);
    }
    return value;
}

static void print_figures(const struct load *load)
{
    /* Alive, yet not one message in the whole window: a lost wake-up or starvation. */
    size_t stalled = 0;
    for (size_t i = 0; i < load->connections; i++)
        stalled += load->mode == ECHO && load->rate <= 0 && load->all[i].counted == 0;
    printf("{\"messages\": %" PRIu64 ", \"seconds\": %.6f, \"bytes\": %" PRIu64
           ", \"errors\": %" PRIu64 ", \"stalled\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f"
           ", \"cpu_seconds\": %.6f}\n",
           load->messages, (double)load->elapsed_ns / 1e9, load->bytes, load->errors, stalled,
           percentile_us(&load->latencies, 0.50), percentile_us(&load->latencies, 0.99),
           (double)load->cpu_ns / 1e9);
    fflush(stdout);
}
