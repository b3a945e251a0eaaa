/*
 * floor: an echo server in C, the floor of `python -m trio_uring bench`: epoll, one thread, one
 * recv and one send for a message. It prints its port and serves until its standard input closes.
 *
 * Rules of this file: either finish what could not be sent, or echo one read: never both, so what
 * is unsent stays bounded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 256 << 10, EVENT_BATCH = 512, BACKLOG = 8192 };

struct connection {
    int fd;
    size_t unsent;
    char *rest; /* what could not be sent; NULL until there is some */
};

static char scratch[CHUNK];

static void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static void watch(int epoll, int operation, struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event) != 0)
        die("epoll_ctl");
}

static struct connection *adopt(int epoll, int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL)
        die("calloc");
    c->fd = fd;
    watch(epoll, EPOLL_CTL_ADD, c, EPOLLIN);
    return c;
}

static void end(struct connection *c)
{
    close(c->fd);
    free(c->rest);
    free(c);
}

static void echo(int epoll, struct connection *c)
{
    size_t before = c->unsent;
    char *from = before ? c->rest : scratch;
    ssize_t got = before ? (ssize_t)before : recv(c->fd, scratch, CHUNK, 0);
    ssize_t sent = got > 0 ? send(c->fd, from, (size_t)got, MSG_NOSIGNAL) : got;
    if (got > 0 && sent < 0 && errno == EAGAIN)
        sent = 0;
    else if (sent <= 0) {
        end(c);
        return;
    }
    c->unsent = (size_t)(got - sent);
    if (c->unsent > 0) {
        if (c->rest == NULL && (c->rest = malloc(CHUNK)) == NULL)
            die("malloc");
        memmove(c->rest, from + sent, c->unsent);
    }
    if ((c->unsent > 0) != (before > 0))
        watch(epoll, EPOLL_CTL_MOD, c, c->unsent ? EPOLLOUT : EPOLLIN);
}

static void take_connections(int epoll, int listener)
{
    int on = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        adopt(epoll, fd);
    }
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    struct epoll_event events[EVENT_BATCH];
    int epoll = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, BACKLOG) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("listener");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct connection *accepting = adopt(epoll, listener), *input = adopt(epoll, STDIN_FILENO);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENT_BATCH, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == input)
                return EXIT_SUCCESS;
            if (events[i].data.ptr == accepting)
                take_connections(epoll, listener);
            else
                echo(epoll, events[i].data.ptr);
        }
    }
}
