/*
 * loadgen: a closed-loop echo load generator for benchmarks/echo.py. Plain C11 on Linux's epoll,
 * one thread.
 *
 *   loadgen HOST PORT CONNECTIONS MESSAGE_BYTES SECONDS WARMUP_SECONDS
 *
 * Every connection keeps exactly one message outstanding: send it, read its whole echo back, send
 * the next. First each of them gets one echo and waits for the others: a server that accepts once a
 * scheduler pass needs seconds for 500 connections when those that it has keep it busy, and that is
 * not what is measured. Then comes the warmup, then the window.
 *
 * On standard output, each line flushed at once:
 *   START   the counted window begins      the runner samples the server's CPU clock when it reads
 *   END     the counted window is over     these two; the load goes on for TAIL_NS so that END is
 *                                          read under load
 *   {...}   the figures, one line of JSON
 *
 * Rules of this file
 *  - Every received byte is compared with what was sent. A message starts at an offset of the
 *    pattern that depends on its connection and its number, so bytes of another connection or of an
 *    older message are errors too.
 *  - A connection that fails is counted in "errors", closed and not replaced; the first cause goes
 *    to stderr.
 *  - It must stay cheaper than any server it measures: no allocation, and for a small message one
 *    send, one recv and one clock reading (epoll_wait is shared). "cpu_seconds" tells the reader
 *    whether that was enough.
 *  - Loopback only, and an alarm ends it whatever happens.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND UINT64_C(1000000000)
#define TAIL_NS (NS_PER_SECOND / 10)

enum {
    CONNECTIONS_MAX = 28000,      /* the ephemeral ports of one address, by default */
    MESSAGE_BYTES_MAX = 64 << 20, /* the pattern is held in memory */
    ALARM_MARGIN_SECONDS = 30,    /* connecting, gathering and the tail, on a very busy machine */
    PATTERN_OFFSETS = 1021,       /* a prime: steps by connection and message never fall in phase */
    READ_CHUNK_BYTES = 256 << 10, /* stays in L2 */
    EVENT_BATCH = 512, SECONDS_MAX = 3600,
    WAIT_MS = 10,                 /* how late a window can end when nothing happens at all */
    SUB_BITS = 8,                 /* histogram: 256 buckets an octave, 0.4 % wide */
    SUB_COUNT = 1 << SUB_BITS,
    BUCKETS = (64 - SUB_BITS + 1) * SUB_COUNT
};

enum phase { GATHERING, WARMUP, COUNTING, TAIL, DONE };

struct connection {
    int fd;
    unsigned number, message_number;
    const unsigned char *message;
    size_t sent, received;
    uint64_t started_ns;
    uint64_t counted; /* messages completed within the window */
};

struct load {
    struct sockaddr_in address;
    size_t connections, message_bytes;
    uint64_t window_ns, warmup_ns;
    int epoll; /* edge-triggered: no epoll_ctl after the start */
    unsigned char *pattern, *scratch;
    struct connection *all;
    size_t live, gathered; /* connections that are open; those that got their first echo */
    enum phase phase;
    uint64_t deadline_ns; /* the end of the current phase */
    uint64_t started_ns, elapsed_ns, cpu_ns;
    uint64_t bytes, messages, errors, latency_max_ns;
    uint64_t histogram[BUCKETS];
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

/* ---- latency histogram: log-linear, so microseconds and seconds are both known to 0.4 % ---- */

static size_t bucket_of(uint64_t ns)
{
    if (ns < SUB_COUNT)
        return (size_t)ns;
    unsigned shift = 63U - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    /* ns >> shift is in [SUB_COUNT, 2 * SUB_COUNT) */
    return (size_t)shift * SUB_COUNT + (size_t)(ns >> shift);
}

static double bucket_middle_us(size_t bucket)
{
    if (bucket < SUB_COUNT)
        return (double)bucket / 1e3;
    unsigned shift = (unsigned)(bucket / SUB_COUNT) - 1;
    return ((double)(bucket % SUB_COUNT + SUB_COUNT) + 0.5) * (double)(UINT64_C(1) << shift) / 1e3;
}

static double percentile_us(const struct load *load, double share)
{
    size_t bucket = 0;
    uint64_t seen = load->histogram[0];
    while (bucket + 1 < BUCKETS && (double)seen < share * (double)load->messages)
        seen += load->histogram[++bucket];
    return bucket_middle_us(bucket);
}

static void count_message(struct load *load, uint64_t latency_ns)
{
    load->histogram[bucket_of(latency_ns)]++;
    load->messages++;
    if (latency_ns > load->latency_max_ns)
        load->latency_max_ns = latency_ns;
}

/* ---- one connection ---- */

static void drop(struct load *load, struct connection *c, const char *why)
{
    if (load->errors++ == 0)
        fprintf(stderr, "loadgen: connection %u, message %u, byte %zu of %zu: %s\n", c->number,
                c->message_number, c->received, load->message_bytes, why);
    close(c->fd);
    c->fd = -1;
    load->live--;
}

/* Sends until all is sent or the socket is full; epoll is edge-triggered, so it must go on to
 * EAGAIN. */
static bool send_more(struct load *load, struct connection *c)
{
    while (c->sent < load->message_bytes) {
        ssize_t n = send(c->fd, c->message + c->sent, load->message_bytes - c->sent, MSG_NOSIGNAL);
        if (n >= 0) {
            c->sent += (size_t)n;
        } else {
            if (errno == EAGAIN)
                return true;
            drop(load, c, strerror(errno));
            return false;
        }
    }
    return true;
}

static void begin_message(struct load *load, struct connection *c, uint64_t now)
{
    c->message_number++;
    c->message = load->pattern + (c->number * 7U + c->message_number * 13U) % PATTERN_OFFSETS;
    c->sent = c->received = 0;
    c->started_ns = now;
    send_more(load, c);
}

static void complete_message(struct load *load, struct connection *c)
{
    if (load->phase == GATHERING) {
        load->gathered++;
        return;
    }
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    if (load->phase == COUNTING) {
        count_message(load, now - c->started_ns);
        c->counted++;
    }
    begin_message(load, c, now);
}

/*
 * Takes what has arrived. It asks for one byte more than is due, so that a surplus byte is an error
 * at once; and a read shorter than asked for emptied the socket, so that what comes later is a new
 * edge.
 */
static void receive_more(struct load *load, struct connection *c)
{
    for (;;) {
        size_t want = load->message_bytes - c->received + 1;
        if (want > READ_CHUNK_BYTES)
            want = READ_CHUNK_BYTES;
        ssize_t n = recv(c->fd, load->scratch, want, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            drop(load, c, n == 0 ? "end of stream" : strerror(errno));
            return;
        }
        size_t got = (size_t)n;
        const unsigned char *expected = c->message + c->received;
        if (c->received + got > c->sent || memcmp(load->scratch, expected, got) != 0) {
            drop(load, c, "received bytes that are not the echo of what was sent");
            return;
        }
        c->received += got;
        if (load->phase == COUNTING)
            load->bytes += got;
        if (c->received == load->message_bytes) {
            complete_message(load, c);
            return; /* nothing of the next echo can be here yet */
        }
        if (got < want)
            return;
    }
}

static void handle_event(struct load *load, struct connection *c, uint32_t events)
{
    if ((events & EPOLLOUT) && c->sent < load->message_bytes && !send_more(load, c))
        return;
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        receive_more(load, c);
}

/* ---- the run ---- */

static void open_window(struct load *load)
{
    load->phase = COUNTING;
    puts("START");
    fflush(stdout);
    load->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    load->started_ns = clock_ns(CLOCK_MONOTONIC);
    load->deadline_ns = load->started_ns + load->window_ns;
}

static void close_window(struct load *load, uint64_t now)
{
    load->phase = TAIL;
    load->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - load->cpu_ns;
    load->elapsed_ns = now - load->started_ns;
    puts("END");
    fflush(stdout);
    load->deadline_ns = now + TAIL_NS;
}

static void begin_all(struct load *load)
{
    for (size_t i = 0; i < load->connections; i++)
        if (load->all[i].fd >= 0)
            begin_message(load, &load->all[i], clock_ns(CLOCK_MONOTONIC));
}

static void advance_phase(struct load *load, uint64_t now)
{
    if (load->phase == GATHERING) {
        if (load->gathered + load->errors < load->connections)
            return; /* no deadline of its own: the alarm, and the program that waits for START */
        load->phase = WARMUP;
        load->deadline_ns = now + load->warmup_ns;
        begin_all(load);
    }
    if (now < load->deadline_ns)
        return;
    if (load->phase == WARMUP)
        open_window(load);
    else if (load->phase == COUNTING)
        close_window(load, now);
    else
        load->phase = DONE;
}

static void run(struct load *load)
{
    struct epoll_event events[EVENT_BATCH];
    begin_all(load);
    while (load->phase != DONE && load->live > 0) {
        int n = epoll_wait(load->epoll, events, EVENT_BATCH, WAIT_MS);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        advance_phase(load, clock_ns(CLOCK_MONOTONIC));
        for (int i = 0; i < n; i++)
            handle_event(load, events[i].data.ptr, events[i].events);
    }
}

static void print_figures(const struct load *load)
{
    /* Alive, yet not one message in the whole window: a lost wake-up or starvation. */
    size_t stalled = 0;
    for (size_t i = 0; i < load->connections; i++)
        stalled += load->all[i].fd >= 0 && load->all[i].counted == 0;
    printf("{\"messages\": %" PRIu64 ", \"seconds\": %.6f, \"bytes\": %" PRIu64
           ", \"errors\": %" PRIu64 ", \"stalled\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f"
           ", \"max_us\": %.2f, \"cpu_seconds\": %.6f}\n",
           load->messages, (double)load->elapsed_ns / 1e9, load->bytes, load->errors, stalled,
           percentile_us(load, 0.50), percentile_us(load, 0.99), (double)load->latency_max_ns / 1e3,
           (double)load->cpu_ns / 1e9);
    fflush(stdout);
}

/* ---- setting up ---- */

static int open_connection(const struct sockaddr_in *address)
{
    int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) != 0)
        die("connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        die("TCP_NODELAY");
    /* Blocking while it connects (the backlog takes it at once), non-blocking from here on. */
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        die("O_NONBLOCK");
    return fd;
}

static void open_connections(struct load *load)
{
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (load->epoll < 0)
        die("epoll_create1");
    for (size_t i = 0; i < load->connections; i++) {
        struct connection *c = &load->all[i];
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
        c->number = (unsigned)i;
        c->fd = open_connection(&load->address);
        load->live++;
        if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0)
            die("epoll_ctl");
    }
}

static void allocate(struct load *load)
{
    size_t pattern_bytes = load->message_bytes + PATTERN_OFFSETS;
    load->pattern = malloc(pattern_bytes);
    load->scratch = malloc(READ_CHUNK_BYTES);
    load->all = calloc(load->connections, sizeof *load->all);
    if (load->pattern == NULL || load->scratch == NULL || load->all == NULL)
        die("malloc");
    /* xorshift: without a period that could hide a shifted chunk. */
    uint64_t x = UINT64_C(0x9E3779B97F4A7C15);
    for (size_t i = 0; i < pattern_bytes; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        load->pattern[i] = (unsigned char)(x >> 56);
    }
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

static void parse_arguments(struct load *load, int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr,
                "usage: loadgen HOST PORT CONNECTIONS MESSAGE_BYTES SECONDS WARMUP_SECONDS\n");
        exit(EXIT_FAILURE);
    }
    load->address.sin_family = AF_INET;
    if (inet_pton(AF_INET, argv[1], &load->address.sin_addr) != 1 ||
        ntohl(load->address.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET) {
        fprintf(stderr, "loadgen: HOST must be an IPv4 loopback address, not '%s'\n", argv[1]);
        exit(EXIT_FAILURE);
    }
    load->address.sin_port = htons((uint16_t)parse_number(argv[2], "PORT", 1, UINT16_MAX));
    load->connections = (size_t)parse_number(argv[3], "CONNECTIONS", 1, CONNECTIONS_MAX);
    load->message_bytes = (size_t)parse_number(argv[4], "MESSAGE_BYTES", 1, MESSAGE_BYTES_MAX);
    double seconds = parse_number(argv[5], "SECONDS", 0.01, SECONDS_MAX);
    double warmup = parse_number(argv[6], "WARMUP_SECONDS", 0, SECONDS_MAX);
    load->window_ns = (uint64_t)(seconds * 1e9);
    load->warmup_ns = (uint64_t)(warmup * 1e9);
    alarm((unsigned)(seconds + warmup) + ALARM_MARGIN_SECONDS);
}

int main(int argc, char **argv)
{
    static struct load load; /* static: the histogram is 114 KiB, and all of it starts at zero */
    parse_arguments(&load, argc, argv);
    allocate(&load);
    open_connections(&load);
    run(&load);
    if (load.phase != DONE) {
        fprintf(stderr, "loadgen: every connection failed\n");
        return EXIT_FAILURE;
    }
    print_figures(&load);
    return EXIT_SUCCESS;
}
