/* Tries io_uring's system calls in a child process, where it does no harm if a seccomp filter kills
 * for one of them.
 *
 * Rules of this file: those of ring.h. The child is a copy of the process; it makes the calls below
 * and exits. It runs none of the program's code (no signal handler, no pthread_atfork) and shares
 * nothing with it but `*stage`.
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

/* A filter judges a call when it enters the kernel, so the arguments can be invalid: nothing is
 * created. The results do not matter: whoever opens a ring will get them, too. */
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
    /* Otherwise the program's signal handlers could run in the child, and might write to
     * descriptors that both share. If a filter sends SIGSYS while it is blocked, the process ends,
     * whatever handler there is. */
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
