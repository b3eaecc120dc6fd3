/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The system calls of the pool and its workers: a call without a caller does not go in.
 *
 * X(name, roles, when, rule, callers, why): a row. A call may be made if one of its rows allows it;
 * a call that no row allows ends the process.
 *
 * Roles. P: the pool and its holder. L: the main thread of a worker, with its loop. T: the other
 * threads of a worker, including those of zmq. G: the guard of the broker of file handles, and the
 * guard's deputy. B: that broker. Guard, deputy and broker do not run under the pool's filter and
 * have rows of their own. A filter stays in force for all processes and threads that a process
 * creates, so the pool's filter has the rows of P, L and T. Before it does anything else, each
 * worker adds a second filter, which has only the rows of L and T. A worker's threads do not get a
 * third filter: they share all memory with the loop, so an attacker who controls one thread can
 * make the others call for it.
 *
 * When. The row holds only for jobs that meet all of these conditions (enum seccomp_condition); 0:
 * always. The ops must refuse a request whose call a job rules out, because a request must not end
 * a worker. Where the ops leave that to the kernel, a row answers the call instead.
 *
 * Rule. ANY, or the values that the arguments must have; arguments are counted from 0:
 *   IS(n, value)               the low 32 bits, which is all that the kernel reads of an int
 *   MASKED(n, mask, value)     the same, but only the bits in `mask` count
 *   PAIR(n, value, m, value)   two arguments; of the second one all 64 bits
 *   OWN_PROCESS                argument 0 is this process (in the pool's filter: any)
 *   OWN_SOCKET                 argument 0 is this worker's socket of the broker (in the pool's
 *                              filter: any)
 *   ANSWERED(rule, answer)     the call is not made: its result is an errno, or 0 (IGNORED)
 *
 * Callers. Files of vfsd, or the library that makes the call; then `why` names the library's
 * function. If only another version of a library or another architecture needs a row, the row says
 * which. A test compares rows and callers (tests/worker/test_syscall_table.py).
 *
 * Kept out on purpose: every call that takes a path without a directory fd where the *at form
 * exists, execve, ptrace, process_vm_*, mount and its family, bpf, keyctl, userfaultfd, io_uring,
 * socket and connect, and executable memory, so that a library that the guest put into the share
 * cannot be loaded. syscall_filter.c answers clone3 with ENOSYS, since a filter cannot see its
 * flags; glibc then uses clone.
 */
#ifndef VFSD_SYSCALLS_H
#define VFSD_SYSCALLS_H

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define CLONE_NEW_ANY                                                                              \
	(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | \
	 CLONE_NEWCGROUP)
#define CLONE_SIBLING (CLONE_FILES | CLONE_PARENT | CLONE_PARENT_SETTID | SIGCHLD)
#define OPEN_CHANGES  (O_ACCMODE | O_CREAT | O_TRUNC)

/* arm64 and younger architectures have only the later forms of some calls. */
#ifdef SYS_poll
#define IF_LATER_FORMS IF_NEVER
#else
#define IF_LATER_FORMS 0
#endif

#define VFSD_SYSCALLS(X)                                                                          \
	/* Ops: names */                                                                          \
	X(openat, P | L | T, IF_WRITABLE, ANY,                                                    \
	  "inode_fd.c ops_open.c ops_attr.c lease.c entry_open.c silly_rename.c descriptors.py",  \
	  "LOOKUP, OPEN, OPENDIR, CREATE; /proc/self/status and /proc/self/fd")                   \
	X(openat, P | L | T, IF_READONLY, MASKED(2, OPEN_CHANGES, O_RDONLY),                      \
	  "inode_fd.c ops_open.c lease.c entry_open.c descriptors.py",                            \
	  "LOOKUP, OPEN, OPENDIR, as above")                                                      \
	X(openat, L, IF_READONLY, ANSWERED(MASKED(2, OPEN_CHANGES, O_RDWR), EROFS),               \
	  "entry_open.c", "SETLK, where O_RDONLY is refused")                                     \
	X(statx, P | L | T, 0, ANY, "identity.c ops_attr.c",                                      \
	  "LOOKUP, GETATTR, STATX, READDIRPLUS")                                                  \
	X(newfstatat, P | L | T, 0, ANY, "glibc", "fstat() of files, segments, guest memory")     \
	X(fstat, P | L | T, 0, ANY, "glibc", "fstat() where glibc < 2.33")                        \
	X(mkdirat, L, IF_WRITABLE, ANY, "ops_namespace.c", "MKDIR")                               \
	X(mknodat, L, IF_WRITABLE, ANY, "ops_namespace.c label.c", "MKNOD, CREATE with a label")  \
	X(symlinkat, L, IF_WRITABLE, ANY, "ops_namespace.c", "SYMLINK")                           \
	X(linkat, L, IF_WRITABLE, ANY, "ops_namespace.c label.c", "LINK; CREATE with a label")    \
	X(unlinkat, L, IF_WRITABLE, ANY, "ops_namespace.c label.c", "UNLINK, RMDIR")              \
	X(renameat, L, IF_WRITABLE, ANY, "ops_namespace.c", "RENAME")                             \
	X(renameat2, L, IF_WRITABLE, ANY, "ops_namespace.c label.c", "RENAME2; a labelled MKDIR") \
	X(readlinkat, P | L, 0, ANY, "ops_attr.c silly_rename.c", "READLINK; RELEASE on NFS")     \
	X(faccessat2, L, 0, ANY, "glibc", "ACCESS: faccessat() with flags")                       \
	X(fchmodat, L, IF_WRITABLE, ANY, "ops_attr.c ops_xattr.c", "SETATTR mode, SETXATTR")      \
	X(fchownat, L, IF_WRITABLE, ANY, "ops_attr.c", "SETATTR owner and group")                 \
	X(utimensat, L, IF_WRITABLE, ANY, "ops_attr.c", "SETATTR times")                          \
	X(name_to_handle_at, P | L, 0, ANY, "fhandle.c", "LOOKUP: proof that a file is the same") \
	X(open_by_handle_at, P | L | T, IF_HANDLES, ANY, "fhandle.c",                             \
	  "an inode that is held by its handle")                                                  \
	/* The broker of file handles, requests to it, and its guard */                           \
	X(open_by_handle_at, B, 0, IS(2, O_PATH | O_NOFOLLOW | O_CLOEXEC), "fhandle.c",           \
	  "opening a signed handle")                                                              \
	X(openat, B, 0, MASKED(2, OPEN_CHANGES, O_RDONLY), "handle_broker.c",                     \
	  "the way up from a mount to the share; the mount")                                      \
	X(statx, B, 0, ANY, "identity.c", "which file an fd is")                                  \
	X(name_to_handle_at, B, 0, ANY, "fhandle.c", "the handle that is signed")                 \
	X(recvmsg, B, 0, ANY, "handle_broker.c", "requests of workers")                           \
	X(sendmsg, B, 0, ANY, "handle_protocol.c", "answers")                                     \
	X(poll, B, 0, ANY, "handle_broker.c fhandle.c", "waiting for requests; a pause")          \
	X(ppoll, B, IF_LATER_FORMS, ANY, "glibc", "poll() where there is no other call")          \
	X(close, B, 0, ANY, "handle_broker.c", "fds that were received and sent")                 \
	X(restart_syscall, B, 0, ANY, "kernel", "poll() after SIGSTOP")                           \
	X(recvmsg, L, IF_SIGNED, OWN_SOCKET, "handle_client.c", "the broker's answers")           \
	X(sendmsg, L, IF_SIGNED, OWN_SOCKET, "handle_protocol.c", "requests to the broker")       \
	X(clone, G, 0, IS(0, SIGCHLD), "handle_guard.c", "a broker and a deputy are created")     \
	X(pipe2, G, 0, ANY, "handle_guard.c", "the lifeline of a deputy that becomes the guard")  \
	X(read, G, 0, ANY, "handle_guard.c", "the key; the deputy waits for the guard's end")     \
	X(write, G, 0, ANY, "handle_guard.c", "the guard ends by itself")                         \
	X(close, G, 0, ANY, "handle_guard.c", "an end of the lifeline")                           \
	X(wait4, G, 0, ANY, "glibc", "waitpid(): a broker or a deputy has died")                  \
	X(clock_nanosleep, G, 0, ANY, "glibc", "nanosleep() before the next broker")              \
	X(seccomp, G, 0, PAIR(0, SECCOMP_SET_MODE_FILTER, 1, 0), "syscall_filter.c",              \
	  "the broker confines itself further")                                                   \
	X(exit_group, G | B, 0, ANY, "handle_guard.c", "all workers' ends are closed")            \
	/* Ops: data */                                                                           \
	X(read, P | L | T, 0, ANY, "offload.c direct_io.c poll.c descriptors.py", "eventfds")     \
	X(pread64, T, 0, ANY, "ops_io.c", "READ that is off the loop")                            \
	X(preadv, T, 0, ANY, "ops_io.c",                                                          \
	  "READ that is off the loop; glibc for preadv2() as for pwritev2()")                     \
	X(preadv2, L | T, 0, ANY, "ops_io.c", "READ, into guest pages")                           \
	X(write, P | L | T, 0, ANY, "offload.c ring.c pool.py", "eventfds, stderr")               \
	X(writev, P | L | T, 0, ANY, "glibc", "__libc_message(), before it aborts")               \
	X(pwritev2, L | T, IF_WRITABLE, ANY, "ops_io.c", "WRITE, from guest pages")               \
	X(pwritev, L | T, IF_WRITABLE, ANY, "glibc",                                              \
	  "pwritev2() where a file system answers ENOSYS")                                        \
	X(getdents64, P | L, 0, ANY, "ops_dir.c silly_rename.c sweep.py",                         \
	  "READDIR, READDIRPLUS; RMDIR on NFS; /proc/self/fd")                                    \
	X(lseek, P | L, 0, ANY, "ops_lseek.c ops_dir.c", "LSEEK, READDIR at an offset")           \
	X(ftruncate, L, IF_WRITABLE, ANY, "ops_attr.c", "SETATTR size")                           \
	X(fallocate, L | T, IF_WRITABLE, ANY, "ops_io.c", "FALLOCATE")                            \
	X(fsync, L | T, 0, ANY, "ops_io.c", "FSYNC, FSYNCDIR")                                    \
	X(fdatasync, L | T, 0, ANY, "ops_io.c", "FSYNC of data only")                             \
	X(syncfs, L | T, 0, ANY, "ops_io.c", "SYNCFS")                                            \
	X(copy_file_range, L | T, IF_WRITABLE, ANY, "ops_io.c", "COPY_FILE_RANGE")                \
	X(cachestat, L, 0, ANY, "page_state.c", "OPEN: are pages of the file dirty?")             \
	X(fstatfs, L, 0, ANY, "ops_attr.c file_system.c guest_memory.c",                          \
	  "STATFS; what kind of file system a file is on")                                        \
	X(flock, L, IF_FLOCK, ANY, "ops_lock.c session_locks.c",                                  \
	  "SETLK, SETLKW; RELEASE; restoration")                                                  \
	X(fcntl, L, IF_POSIX_LOCK, IS(1, F_OFD_GETLK), "ops_lock.c", "GETLK")                     \
	X(fcntl, L, IF_POSIX_LOCK, IS(1, F_OFD_SETLK), "record_lock.c",                           \
	  "SETLK, SETLKW, FLUSH; restoration")                                                    \
	X(fcntl, P | L, 0, IS(1, F_DUPFD_CLOEXEC), "ops_release.c open_cache.c sweep.py",         \
	  "OPEN of a file that is already open, FLUSH; listing /proc/self/fd")                    \
	X(fcntl, P | L | T, 0, IS(1, F_GETFL), "ring.c", "eventfds of the VMM")                   \
	X(fcntl, L | T, 0, IS(1, F_SETFL), "zmq", "unblock_socket()")                             \
	X(fcntl, P | L, 0, IS(1, F_GET_SEALS), "ring.c shared_memory.c", "may a segment shrink?") \
	X(fcntl, P, 0, IS(1, F_GETFD), "descriptors.c", "which fds are marked (sweep.py)")        \
	X(fcntl, P, 0, IS(1, F_SETFD), "descriptors.c", "marking an fd that may be an orphan")    \
	/* Ops: extended attributes, by the names of fds in /proc/self/fd */                      \
	X(getxattr, L, IF_XATTR, ANY, "ops_xattr.c file_capability.c", "GETXATTR; WRITE")         \
	X(listxattr, L, IF_XATTR, ANY, "ops_xattr.c", "LISTXATTR")                                \
	X(setxattr, L, IF_XATTR | IF_WRITABLE, ANY, "ops_xattr.c label.c", "SETXATTR; labels")    \
	X(removexattr, L | T, IF_XATTR | IF_WRITABLE, ANY, "ops_xattr.c file_capability.c",       \
	  "REMOVEXATTR; a WRITE drops a capability")                                              \
	X(fchdir, L, 0, ANY, "fs_init.c", "into /proc/self/fd, once")                             \
	/* IOCTL */                                                                               \
	X(ioctl, L, 0, IS(1, FS_IOC_GETFLAGS), "ops_ioctl.c", "IOCTL: lsattr")                    \
	X(ioctl, L, 0, IS(1, FS_IOC_FSGETXATTR), "ops_ioctl.c", "IOCTL: lsattr -p")               \
	X(ioctl, L, IF_WRITABLE, IS(1, FS_IOC_SETFLAGS), "ops_ioctl.c", "IOCTL: chattr")          \
	X(ioctl, L, IF_WRITABLE, IS(1, FS_IOC_FSSETXATTR), "ops_ioctl.c", "IOCTL: chattr -p")     \
	X(ioctl, P, 0, IS(1, FIONBIO), "CPython", "socket.setblocking()")                         \
	/* Reads that need no thread */                                                           \
	X(io_setup, L, IF_DIRECT_IO, ANY, "direct_io.c", "READ with O_DIRECT")                    \
	X(io_submit, L, IF_DIRECT_IO, ANY, "direct_io.c", "READ with O_DIRECT")                   \
	X(io_getevents, L, IF_DIRECT_IO, ANY, "direct_io.c", "READ with O_DIRECT")                \
	/* Ids of the requesting user */                                                          \
	X(setresuid, L | T, IF_IDS, ANY, "credentials.c", "CREATE, MKDIR, … as the requester")    \
	X(setresgid, L | T, IF_IDS, ANY, "credentials.c", "… with its group")                     \
	X(setgroups, L | T, IF_IDS, ANY, "credentials.c", "… and supplementary groups")           \
	X(getresuid, T, 0, ANY, "credentials.c", "a thread becomes root")                         \
	X(getresgid, T, 0, ANY, "credentials.c", "a thread becomes root")                         \
	X(geteuid, L, 0, ANY, "credentials.c", "the worker's own uid, once")                      \
	X(getegid, L, 0, ANY, "credentials.c", "the worker's own gid, once")                      \
	X(capget, L | T, 0, ANY, "credentials.c", "switching FSETID and DAC_OVERRIDE")            \
	X(capset, L | T, 0, ANY, "credentials.c", "switching FSETID and DAC_OVERRIDE")            \
	X(umask, L, 0, ANY, "credentials.c", "CREATE, MKDIR, MKNOD with the requester's umask")   \
	/* Descriptors */                                                                         \
	X(close, P | L | T, 0, ANY, "reclaim.c entry.c entry_open.c offload.c sweep.py",          \
	  "fds that were opened")                                                                 \
	X(eventfd2, P | L, 0, ANY, "offload.c direct_io.c pool_memory.py",                        \
	  "completions; zmq's own; deaths and starts of workers")                                 \
	/* Waiting */                                                                             \
	X(poll, P | L | T, 0, ANY, "poll.c adopt.c fhandle.c watchdog.c fd_calls.py",             \
	  "the loop, pool, zmq; a pause")                                                         \
	X(ppoll, P | L | T, IF_LATER_FORMS, ANY, "glibc", "poll() where there is no other call")  \
	X(epoll_create1, L, 0, ANY, "zmq", "epoll_t::epoll_t()")                                  \
	X(epoll_ctl, L | T, 0, ANY, "zmq", "epoll_t::add_fd()")                                   \
	X(epoll_wait, T, 0, ANY, "zmq", "epoll_t::loop()")                                        \
	X(epoll_pwait, T, IF_LATER_FORMS, ANY, "glibc", "epoll_wait() where there is no other")   \
	X(clock_nanosleep, P | L, 0, ANY, "glibc",                                                \
	  "nanosleep() in inode_fd.c reclaim.c; CPython's time.sleep()")                          \
	X(restart_syscall, P | L | T, 0, ANY, "kernel", "poll() after SIGSTOP")                   \
	/* The channels: only sockets that were inherited or accepted */                          \
	X(accept4, T, 0, ANY, "zmq", "ipc_listener_t::accept(), on the inherited listener")       \
	X(recvmsg, P, 0, ANY, "CPython", "socket.recvmsg() of the fd channel")                    \
	X(sendmsg, P, 0, ANY, "CPython", "socket.sendmsg() of the fd channel")                    \
	X(recvfrom, L | T, 0, ANY, "zmq", "tcp_read()")                                           \
	X(sendto, L | T, 0, ANY, "zmq", "tcp_write()")                                            \
	X(getsockopt, P | L | T, 0, ANY, "CPython zmq", "socket.socket(); zmq_connect()")         \
	X(getsockname, P | L | T, 0, ANY, "CPython", "socket.getsockname(); zmq's bind()")        \
	X(getpeername, T, 0, ANY, "zmq", "get_peer_ip_address()")                                 \
	/* Memory */                                                                              \
	X(brk, P | L | T, 0, ANY, "glibc", "malloc()")                                            \
	X(mmap, P | L | T, 0, MASKED(2, PROT_EXEC, 0), "guest_memory.c ring.c sigbus.c",          \
	  "guest memory; malloc(), stacks")                                                       \
	X(mprotect, P | L | T, 0, MASKED(2, PROT_EXEC, 0), "glibc", "malloc(), pthread_create()") \
	X(munmap, P | L | T, 0, ANY, "guest_memory.c ring.c", "guest memory; free()")             \
	X(mremap, P | L | T, 0, ANY, "glibc", "realloc()")                                        \
	X(madvise, P | L | T, 0, ANY, "guest_memory.c records.c",                                 \
	  "guest memory not in core files; free()")                                               \
	/* Processes and threads */                                                               \
	X(pipe2, P, 0, ANY, "restoration.py", "the report of a restored session")                 \
	X(clone, P, 0, IS(0, CLONE_FILES | SIGCHLD), "clone_process.c", "a pool is created")      \
	X(clone, P, 0, IS(0, CLONE_SIBLING), "clone_process.c", "a worker is created")            \
	X(clone, L | T, 0, MASKED(0, CLONE_THREAD | CLONE_NEW_ANY, CLONE_THREAD), "glibc",        \
	  "pthread_create()")                                                                     \
	X(seccomp, P, 0, PAIR(0, SECCOMP_SET_MODE_FILTER, 1, 0), "syscall_filter.c",              \
	  "a worker confines itself further")                                                     \
	X(set_robust_list, T, 0, ANY, "glibc", "pthread_create()")                                \
	X(rseq, T, 0, ANY, "glibc", "pthread_create() where glibc >= 2.35")                       \
	X(futex, P | L | T, 0, ANY, "glibc", "pthread_mutex_lock(), pthread_cond_wait()")         \
	X(sched_yield, P | L | T, 0, ANY, "owner_lock.h poll.c", "locks in the shared tables")    \
	X(sched_getaffinity, L | T, 0, ANY, "poll.c", "how many CPUs there are to poll on")       \
	X(sched_setaffinity, L, IF_QUEUE_CPUS, IS(0, 0), "queue_worker.py", "--queue-cpus")       \
	X(sched_getparam, T, 0, ANY, "zmq", "thread_t::applySchedulingParameters()")              \
	X(sched_getscheduler, T, 0, ANY, "zmq", "thread_t::applySchedulingParameters()")          \
	X(sched_setscheduler, T, 0, ANSWERED(ANY, IGNORED), "zmq",                                \
	  "thread_t::applySchedulingParameters() asks for the policy already in force")           \
	X(prctl, P | L | T, 0, IS(0, PR_SET_NAME), "zmq", "thread_t::start(); setproctitle()")    \
	X(exit, T, 0, ANY, "glibc", "pthread_exit()")                                             \
	X(exit_group, P | L, 0, ANY, "CPython", "os._exit()")                                     \
	X(wait4, P, 0, ANY, "CPython", "os.waitpid(): the holder reaps workers")                  \
	X(kill, P, 0, ANY, "CPython", "os.kill(): the pool ends workers")                         \
	X(tgkill, L | T, 0, OWN_PROCESS, "sigbus.c watchdog.c",                                   \
	  "raise(), abort(); a call that waits")                                                  \
	X(getpid, P | L | T, 0, ANY, "queue_worker.py", "worker rows; zmq's signaler_t")          \
	X(gettid, P | L | T, 0, ANY, "watchdog.c", "the thread to signal; raise(); CPython")      \
	X(rt_sigaction, P | L | T, 0, ANY, "sigbus.c watchdog.c",                                 \
	  "SIGBUS; a call that waits; signal.signal()")                                           \
	X(rt_sigprocmask, P | L | T, 0, ANY, "thread.c watchdog.c",                               \
	  "threads without signals; raise()")                                                     \
	X(rt_sigreturn, P | L | T, 0, ANY, "kernel", "the end of a signal handler: sigaction()")  \
	/* Time and chance */                                                                     \
	X(clock_gettime, P | L | T, 0, ANY, "clock.h", "the clock where the vDSO cannot read it") \
	X(getrandom, P | L | T, 0, ANY, "glibc", "malloc(); CPython's os.urandom()")              \
	X(sysinfo, L, 0, ANY, "glibc", "qsort() of many requests: inflight.c")                    \
	X(prlimit64, L | T, 0, PAIR(0, 0, 2, 0), "glibc", "getrlimit(); pthread_getattr_np()")

#endif
