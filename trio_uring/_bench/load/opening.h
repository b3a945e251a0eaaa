/* How loadgen.c opens its sockets, and what it says in the protocols of whole programs: HTTP/1.1
 * with kept connections, and websockets.
 *
 * Rules of this file: a socket is blocking until it is handed over, and the load generator's alarm
 * ends what never comes. Only in the mode `connect` is it part of what is measured. */

/* A client masks its messages; a mask of zeros leaves them as they are, and the server still has
 * to apply it. */
enum { BINARY = 0x82, MASKED = 0x80, LONG_MESSAGE = 126, SHORT_MAX = 125, HEAD_MAX = 8 };

static const char get[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
static const char get_answered[] = "HTTP/1.1 200 ";
static const char upgrade[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                              "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                              "Sec-WebSocket-Key: dHJpb191cmluZyBiZW5jaA==\r\n\r\n";
static const char upgraded[] = "HTTP/1.1 101 ";

static int connect_socket(struct load *load)
{
    int on = 1;
    /* Many addresses of our own: the ports of one would soon be used up by closed connections. */
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(load->random++ % 200));
    int fd = socket(AF_INET, (load->datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (const struct sockaddr *)&from, sizeof from) != 0)
        die("bind");
    if (connect(fd, (const struct sockaddr *)&load->address, sizeof load->address) != 0)
        die("connect");
    if (!load->datagrams && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        die("TCP_NODELAY");
    return fd;
}

/* Sends a request and reads the head of its answer, which begins like this; returns how many bytes
 * of the answer's body have to follow. */
static size_t ask(int fd, const char *request, const char *due, char *head, size_t size)
{
    size_t have = 0;
    const char *length;
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0)
        die("asking");
    do {
        ssize_t n = recv(fd, head + have, size - 1 - have, 0);
        if (n <= 0)
            die("no answer");
        have += (size_t)n;
        head[have] = '\0';
    } while (strstr(head, "\r\n\r\n") == NULL);
    if (strncmp(head, due, strlen(due)) != 0) {
        fprintf(stderr, "loadgen: refused: %s\n", head);
        exit(EXIT_FAILURE);
    }
    length = strcasestr(head, "\r\ncontent-length:");
    return length == NULL ? 0 : strtoul(strchr(length, ':') + 1, NULL, 10);
}

/* One request, to know how long an answer is: all of them are alike. */
static void learn_answer(struct load *load)
{
    char head[4096];
    int fd = connect_socket(load);
    size_t body = ask(fd, get, get_answered, head, sizeof head);
    load->reply_bytes = (size_t)(strstr(head, "\r\n\r\n") + 4 - head) + body;
    close(fd);
    load->answer = (const unsigned char *)get_answered;
    load->answer_bytes = strlen(get_answered);
    load->message_bytes = strlen(get);
}

static int open_socket(struct load *load, struct connection *c)
{
    char head[4096];
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    int fd = connect_socket(load);
    if (load->websocket)
        ask(fd, upgrade, upgraded, head, sizeof head);
    /* Blocking while it connects (the backlog takes it at once), non-blocking from here on. */
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        die("O_NONBLOCK");
    if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll_ctl");
    return fd;
}

/* The head of a message of this many bytes, from the client or from the server. */
static size_t write_head(unsigned char *head, size_t bytes, unsigned char masked)
{
    size_t size = 2;
    head[0] = BINARY;
    head[1] = (unsigned char)(masked | (bytes > SHORT_MAX ? LONG_MESSAGE : (unsigned char)bytes));
    if (bytes > SHORT_MAX) {
        head[size++] = (unsigned char)(bytes >> 8);
        head[size++] = (unsigned char)bytes;
    }
    memset(head + size, 0, 4);
    return masked ? size + 4 : size;
}

/* The pattern holds the message, and behind it the answer. */
static void make_websocket_message(struct load *load)
{
    size_t bytes = load->message_bytes;
    unsigned char *message = malloc(2 * (bytes + HEAD_MAX)), *answer = message + bytes + HEAD_MAX;
    if (message == NULL)
        die("malloc");
    size_t size = write_head(message, bytes, MASKED);
    load->answer_bytes = load->reply_bytes = write_head(answer, bytes, 0) + bytes;
    memcpy(message + size, load->pattern, bytes);
    memcpy(answer + load->answer_bytes - bytes, load->pattern, bytes);
    free(load->pattern);
    load->pattern = message;
    load->answer = answer;
    load->message_bytes = size + bytes;
}
