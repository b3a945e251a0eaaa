/* io_uring's system calls, tried where it does no harm if a seccomp filter kills for one of them:
 * in a child process.
 *
 * Rules of this file: those of ring.h. The child is a copy that does the calls below and exits; it
 * runs nothing of the program's (no signal handler, no pthread_atfork) and shares nothing but
 * `*stage` with it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ring.h"

enum {    /* the same on every architecture */
    TU_NR_SETUP = 425,
    TU_NR_ENTER = 426,
    TU_NR_REGISTER = 427
};

/* A filter judges a call when it enters the kernel, so the arguments may be such that nothing is
 * made. What a call returns is no news: whoever opens a ring gets it too. */
static void try_calls(volatile uint8_t *stage) {
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);    /* no core dump, and no report of a crash */
    *stage = TU_TRIES_SETUP;
    (void)syscall(TU_NR_SETUP, 0, NULL);
    *stage = TU_TRIES_REGISTER;
    (void)syscall(TU_NR_REGISTER, -1, 0, NULL, 0);
    *stage = TU_TRIES_ENTER;
    (void)syscall(TU_NR_ENTER, -1, 0, 0, 0, NULL, 0);
    *stage = TU_TRIED;
    for (;;)
        (void)syscall(SYS_exit_group, 0);
}

int tu_try_calls(uint8_t *stage) {
    sigset_t all, before;
    long pid;
    int error;
    /* A handler of the program's would run in the child, and might write to descriptors that both
     * have. A blocked SIGSYS of a filter ends the process, whatever handler there is for it. */
    sigfillset(&all);
    if ((error = pthread_sigmask(SIG_SETMASK, &all, &before)) != 0)
        return -error;
    /* Exit signal 0: no SIGCHLD, and nothing for a wait() without __WALL. Not CLONE_VM: before
     * Linux 5.16 a core dump ended every process with the same memory. */
    pid = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
    error = errno;
    if (pid == 0)
        try_calls(stage);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pid < 0 ? -error : (int)pid;
}
