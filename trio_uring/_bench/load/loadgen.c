/*
 * loadgen: the load of `python -m trio_uring bench`. Plain C11 on Linux's epoll, one thread.
 *
 *   loadgen port N [NAME VALUE]...
 *
 *   mode         0 echo: send a message, read its whole answer, send the next
 *                1 connect: the same, on a new connection for each message
 *                2 in: send without end; 3 out: read without end
 *   connections  that are open at the same time
 *   bytes        of a message
 *   reply        bytes of an answer, where it is not the echo of the message
 *   depth        messages outstanding on each connection
 *   paired       1: a connection is two, whose one end comes out at the other
 *   framed       1: a message begins with its length, four bytes, big-endian
 *   datagrams    1: over UDP
 *   http         1: a message is a GET request; all answers have the size of the first
 *   websocket    1: a message is one of the websocket protocol
 *   rate         messages a second, of all connections together, at random times; 0: closed loop
 *   seconds, warmup
 *
 * First every connection gets one echo and waits for the others. Then comes the warmup, then the
 * window. At both ends of the window nothing is outstanding, so that the server is asleep and the
 * reader of its CPU clock gets exactly the messages that are counted:
 *   START   nothing is outstanding; the window begins when a line is read from standard input
 *   END     the last answer is there; goes on when a line is read
 *   {...}   the figures, one line of JSON
 *
 * Rules of this file
 *  - Every byte of an echo is compared with what was sent. A message starts at an offset of the
 *    pattern that depends on its connection and its number, so bytes of another connection or of an
 *    older message are errors too.
 *  - A connection that fails is counted in "errors", closed and not replaced; the first cause goes
 *    to stderr.
 *  - With a rate, latency counts from when a message was due, not from when it could be sent.
 *  - It must stay cheaper than any server that it measures: no allocation, and for a small message
 *    one send, one recv and one clock reading.
 *  - Loopback only, and an alarm ends it whatever happens.
 */
#define _GNU_SOURCE
#include "load.h"
#include "opening.h"

static void open_connection(struct load *load, struct connection *c);

/* ---- one connection ---- */

static const unsigned char *message(const struct load *load, const struct connection *c, unsigned n)
{
    /* Messages that have a head are all alike: it has its place in the pattern. */
    bool alike = load->framed || load->answer != NULL;
    return load->pattern + (alike ? 0 : (c->number * 7U + n * 13U) % PATTERN_OFFSETS);
}

static void drop(struct load *load, struct connection *c, const char *why)
{
    if (load->errors++ == 0)
        fprintf(stderr, "loadgen: connection %u, message %u, byte %zu: %s\n", c->number,
                c->receiving, c->received, why);
    load->outstanding -= c->begun - c->receiving;
    if (c->in_fd != c->fd)
        close(c->in_fd);
    close(c->fd);
    c->fd = -1;
    load->live--;
}

/* Sends until all is sent or the socket is full; epoll is edge-triggered, so it must go on to
 * EAGAIN. False: the connection was dropped. */
static bool send_more(struct load *load, struct connection *c)
{
    bool without_end = load->mode == IN && load->issuing;
    while (c->sending < c->begun || without_end) {
        const unsigned char *from = message(load, c, c->sending) + c->sent;
        ssize_t n = send(c->fd, from, load->message_bytes - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0) {
            drop(load, c, strerror(errno));
            return false;
        }
        c->sent += (size_t)n;
        if (without_end)
            load->bytes += (size_t)n;
        if (c->sent == load->message_bytes) {
            c->sent = 0;
            c->sending++;
            if (without_end)
                return true; /* the others and the clock have their turn: see feed() */
        }
    }
    return true;
}

static void begin_message(struct load *load, struct connection *c, uint64_t now)
{
    if (c->fd < 0)
        open_connection(load, c);
    c->started_ns[c->begun++ % load->depth] = now;
    load->outstanding++;
    send_more(load, c);
}

static void complete_message(struct load *load, struct connection *c)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    if (load->phase == COUNTING) {
        add_latency(&load->latencies, now - c->started_ns[c->receiving % load->depth]);
        load->messages++;
        c->counted++;
    }
    c->received = 0;
    c->receiving++;
    load->outstanding--;
    if (load->mode == CONNECT) {
        close(c->fd);
        c->fd = -1;
    }
    if (load->rate > 0)
        load->idle[load->idle_count++] = c;
    else if (load->issuing && load->phase != GATHERING)
        begin_message(load, c, now);
}

static bool is_due(const struct load *load, const struct connection *c, const unsigned char *data,
                   size_t size)
{
    if (load->answer == NULL)
        return load->reply_bytes != load->message_bytes ||
               memcmp(data, message(load, c, c->receiving) + c->received, size) == 0;
    size_t known = load->answer_bytes > c->received ? load->answer_bytes - c->received : 0;
    return memcmp(data, load->answer + c->received, size < known ? size : known) == 0;
}

/* What arrived is compared with what is due; false: the connection is closed, or to be closed. */
static bool take(struct load *load, struct connection *c, const unsigned char *data, size_t size)
{
    if (load->phase == COUNTING)
        load->bytes += load->mode == IN ? 0 : size;
    if (load->mode == OUT)
        return true;
    while (size > 0) {
        size_t piece = load->reply_bytes - c->received;
        if (piece > size)
            piece = size;
        if (c->receiving == c->begun || !is_due(load, c, data, piece)) {
            drop(load, c, "received bytes that are not the echo of what was sent");
            return false;
        }
        c->received += piece;
        data += piece;
        size -= piece;
        if (c->received == load->reply_bytes) {
            complete_message(load, c);
            if (load->mode == CONNECT)
                return false;
        }
    }
    return true;
}

/*
 * Takes what has arrived. With one message outstanding it asks for one byte more than is due, so
 * that a surplus byte is an error at once; and a read shorter than asked for emptied the socket, so
 * that what comes later is a new edge.
 */
static void receive_more(struct load *load, struct connection *c)
{
    for (;;) {
        size_t want = load->reply_bytes - c->received + 1;
        if (want > READ_CHUNK_BYTES || load->depth > 1 || load->mode == OUT)
            want = READ_CHUNK_BYTES;
        ssize_t n = recv(c->in_fd, load->scratch, want, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            drop(load, c, n == 0 ? "end of stream" : strerror(errno));
            return;
        }
        if (!take(load, c, load->scratch, (size_t)n) || (size_t)n < want)
            return;
        if (c->receiving == c->begun && load->mode != OUT)
            return; /* nothing more can be here */
        if (load->mode == OUT && !load->issuing)
            return;
    }
}

static void handle_event(struct load *load, struct connection *c, uint32_t events)
{
    if (c->fd < 0)
        return; /* closed by an earlier event of this batch */
    if ((events & EPOLLOUT) && !send_more(load, c))
        return;
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        receive_more(load, c);
}

/* ---- the run ---- */

/* Begins what is due by now; returns for how long nothing will be, in nanoseconds. */
static uint64_t issue_due(struct load *load, uint64_t now)
{
    while (load->idle_count > 0 && load->due_ns <= now) {
        begin_message(load, load->idle[--load->idle_count], load->due_ns);
        /* Exponential gaps: arrivals as of many clients that know nothing of each other. */
        double uniform = ((double)(next_random(&load->random) >> 11) + 1) / 9007199254740993.0;
        load->due_ns += (uint64_t)(-log(uniform) / load->rate * 1e9) + 1;
    }
    if (load->idle_count == 0)
        return WAIT_NS;
    return load->due_ns - now < WAIT_NS ? load->due_ns - now : WAIT_NS;
}

/* In the modes without answers there is no event for a socket that was never full. */
static uint64_t feed(struct load *load)
{
    for (size_t i = 0; i < load->connections; i++) {
        if (load->mode == IN)
            send_more(load, &load->all[i]);
        else
            receive_more(load, &load->all[i]);
    }
    return 0;
}

/* Waits for events, no longer than this many nanoseconds, and handles them. */
static void turn(struct load *load, uint64_t wait_ns)
{
    struct epoll_event events[EVENT_BATCH];
    struct pollfd ready = {.fd = load->epoll, .events = POLLIN};
    struct timespec limit = {.tv_nsec = (long)wait_ns};
    int n = epoll_wait(load->epoll, events, EVENT_BATCH, 0);
    if (n == 0 && wait_ns > 0) {
        if (ppoll(&ready, 1, &limit, NULL) < 0 && errno != EINTR)
            die("ppoll"); /* epoll_wait knows milliseconds only */
        n = epoll_wait(load->epoll, events, EVENT_BATCH, 0);
    }
    if (n < 0 && errno != EINTR)
        die("epoll_wait");
    for (int i = 0; i < n; i++)
        handle_event(load, events[i].data.ptr, events[i].events);
}

static bool is_quiet(const struct load *load)
{
    int left = 0;
    if (load->mode == IN)
        for (size_t i = 0; i < load->connections; i++) {
            if (load->all[i].fd >= 0 && ioctl(load->all[i].fd, SIOCOUTQ, &left) == 0 && left > 0)
                return false;
        }
    return load->outstanding == 0;
}

/* Keeps the load up for this long, then waits until nothing is outstanding. */
static void run_phase(struct load *load, enum phase phase, double seconds)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC), end = now + (uint64_t)(seconds * 1e9);
    load->phase = phase;
    load->issuing = true;
    load->due_ns = now;
    if (load->rate <= 0 && load->mode <= CONNECT)
        for (size_t i = 0; i < load->connections; i++)
            for (unsigned d = 0; d < (phase == GATHERING ? 1 : load->depth); d++)
                if (load->all[i].fd >= 0 || load->mode == CONNECT)
                    begin_message(load, &load->all[i], now);
    while (phase != GATHERING && now < end && load->live > 0) {
        turn(load, load->rate > 0 ? issue_due(load, now) : load->mode > CONNECT ? feed(load)
                                                                                : WAIT_NS);
        now = clock_ns(CLOCK_MONOTONIC);
    }
    load->issuing = false;
    while (!is_quiet(load))
        turn(load, WAIT_NS / 10);
}

static void say_and_wait(const char *line)
{
    char answer[8];
    puts(line);
    fflush(stdout);
    if (read(STDIN_FILENO, answer, sizeof answer) <= 0)
        exit(EXIT_FAILURE); /* the program that wanted to know is gone */
}

/* Until the server has begun: what it sends before the window waits in the sockets. */
static void await_first_bytes(const struct load *load)
{
    for (size_t i = 0; i < load->connections; i++) {
        struct pollfd ready = {.fd = load->all[i].in_fd, .events = POLLIN};
        if (poll(&ready, 1, -1) < 0)
            die("poll");
    }
}

static void run(struct load *load)
{
    if (load->mode <= CONNECT) {
        double rate = load->rate;
        load->rate = 0;
        run_phase(load, GATHERING, 0);
        load->rate = rate;
    }
    if (load->mode == OUT)
        await_first_bytes(load);
    for (size_t i = 0; i < load->connections; i++)
        load->idle[load->idle_count++] = &load->all[i];
    run_phase(load, WARMUP, load->warmup_seconds);
    say_and_wait("START");
    load->bytes = 0;
    load->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t began = clock_ns(CLOCK_MONOTONIC);
    run_phase(load, COUNTING, load->seconds);
    load->elapsed_ns = clock_ns(CLOCK_MONOTONIC) - began;
    load->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - load->cpu_ns;
    say_and_wait("END");
}

/* ---- setting up ---- */

static void open_connection(struct load *load, struct connection *c)
{
    c->fd = open_socket(load, c);
    c->in_fd = load->paired ? open_socket(load, c) : c->fd;
}

static void set_up(struct load *load)
{
    if (load->http)
        learn_answer(load);
    size_t pattern_bytes = load->message_bytes + PATTERN_OFFSETS;
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->pattern = malloc(pattern_bytes);
    load->scratch = malloc(READ_CHUNK_BYTES);
    load->all = calloc(load->connections, sizeof *load->all);
    load->idle = calloc(load->connections, sizeof(struct connection *));
    if (load->epoll < 0 || !load->pattern || !load->scratch || !load->all || !load->idle)
        die("setting up");
    load->random = UINT64_C(0x9E3779B97F4A7C15);
    for (size_t i = 0; i < pattern_bytes; i++)
        load->pattern[i] = (unsigned char)(next_random(&load->random) >> 56);
    uint32_t prefix = htonl((uint32_t)load->message_bytes - (uint32_t)sizeof prefix);
    if (load->framed)
        memcpy(load->pattern, &prefix, sizeof prefix);
    if (load->http)
        memcpy(load->pattern, get, load->message_bytes);
    if (load->websocket)
        make_websocket_message(load);
    load->live = load->connections;
    for (size_t i = 0; i < load->connections; i++) {
        load->all[i].number = (unsigned)i;
        load->all[i].fd = -1;
        if (load->mode != CONNECT)
            open_connection(load, &load->all[i]);
    }
}

static void parse_arguments(struct load *load, int argc, char **argv)
{
    double mode = 0, connections = 1, bytes = 1024, reply = 0, depth = 1, port = 0;
    double framed = 0, paired = 0, datagrams = 0, http = 0, websocket = 0;
    struct { const char *name; double *value, low, high; } known[] = {
        {"port", &port, 1, UINT16_MAX},       {"mode", &mode, ECHO, OUT},
        {"bytes", &bytes, 1, MESSAGE_BYTES_MAX}, {"reply", &reply, 1, MESSAGE_BYTES_MAX},
        {"connections", &connections, 1, CONNECTIONS_MAX}, {"depth", &depth, 1, DEPTH_MAX},
        {"framed", &framed, 0, 1}, {"paired", &paired, 0, 1}, {"datagrams", &datagrams, 0, 1},
        {"http", &http, 0, 1}, {"websocket", &websocket, 0, 1}, {"rate", &load->rate, 0, 1e8},
        {"seconds", &load->seconds, 0.01, SECONDS_MAX},
        {"warmup", &load->warmup_seconds, 0, SECONDS_MAX},
    };
    load->seconds = 1;
    for (int i = 1; i < argc; i += 2) {
        size_t k = 0;
        while (k < sizeof known / sizeof *known && strcmp(argv[i], known[k].name) != 0)
            k++;
        if (k == sizeof known / sizeof *known || i + 1 == argc) {
            fprintf(stderr, "usage: loadgen port N [NAME VALUE]..., not '%s'\n", argv[i]);
            exit(EXIT_FAILURE);
        }
        *known[k].value = parse_number(argv[i + 1], known[k].name, known[k].low, known[k].high);
    }
    load->address.sin_family = AF_INET;
    load->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    load->address.sin_port = htons((uint16_t)port);
    load->mode = (enum mode)mode;
    load->connections = (size_t)connections;
    load->message_bytes = (size_t)bytes;
    load->reply_bytes = (size_t)(reply > 0 ? reply : bytes);
    load->depth = (unsigned)depth;
    load->framed = framed > 0;
    load->paired = paired > 0;
    load->datagrams = datagrams > 0;
    load->http = http > 0;
    load->websocket = websocket > 0;
    alarm((unsigned)(load->seconds + load->warmup_seconds) + ALARM_MARGIN_SECONDS);
}

int main(int argc, char **argv)
{
    static struct load load; /* static: the histogram is 114 KiB, and all of it starts at zero */
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    parse_arguments(&load, argc, argv);
    set_up(&load);
    run(&load);
    print_figures(&load);
    return EXIT_SUCCESS;
}
