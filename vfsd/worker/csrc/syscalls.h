/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The system calls of the pool and its workers: a call without a reason does not go in.
 *
 * X(name, why): allowed with any arguments.
 * A(name, argument, mask, value, why): allowed if (argument & mask) == value; argument 0 is the
 * first. Several rows of one call: any of them. What is in no row ends the process.
 * H(name, why): as X, but only where inodes are held by file handles (--inode-file-handles).
 *
 * What is kept out on purpose: everything that takes a path without a directory fd where the *at
 * form exists, execve, ptrace, process_vm_*, mount and its family, bpf, keyctl, userfaultfd,
 * io_uring, socket and connect, and executable memory: a library that the guest put into the share
 * cannot be loaded. syscall_filter.c answers clone3 with ENOSYS, since its flags cannot
 * be looked at; glibc then uses clone.
 */
#ifndef VFSD_SYSCALLS_H
#define VFSD_SYSCALLS_H

#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define CLONE_NEW_ANY                                                                              \
	(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | \
	 CLONE_NEWCGROUP)

#define VFSD_SYSCALLS(X, A, H)                                                      \
	/* Ops: names */                                                            \
	X(openat, "LOOKUP, OPEN, CREATE; Python's own files")                       \
	X(openat2, "LOOKUP and OPEN that must not leave the share")                 \
	X(statx, "LOOKUP, GETATTR, READDIRPLUS")                                    \
	X(newfstatat, "os.stat, realpath")                                          \
	X(fstat, "Python's files; sizes of segments")                               \
	X(mkdirat, "MKDIR")                                                         \
	X(mknodat, "MKNOD")                                                         \
	X(symlinkat, "SYMLINK")                                                     \
	X(linkat, "LINK, TMPFILE")                                                  \
	X(unlinkat, "UNLINK, RMDIR")                                                \
	X(renameat, "RENAME without flags where renameat2 is unknown")              \
	X(renameat2, "RENAME, RENAME2")                                             \
	X(readlinkat, "READLINK; what an fd is, when the pool sweeps")              \
	X(faccessat, "ACCESS")                                                      \
	X(faccessat2, "ACCESS")                                                     \
	X(fchmodat, "SETATTR mode")                                                 \
	X(fchmodat2, "SETATTR mode of a symlink")                                   \
	X(fchmod, "SETATTR mode of an open file")                                   \
	X(fchownat, "SETATTR owner")                                                \
	X(fchown, "SETATTR owner of an open file")                                  \
	X(utimensat, "SETATTR times")                                               \
	X(name_to_handle_at, "the identity of a file")                              \
	H(open_by_handle_at, "an inode that is held by its handle")                 \
	X(getcwd, "Python's os.getcwd")                                             \
	X(readlink, "what an fd is, when the pool sweeps")                          \
	/* Ops: data */                                                             \
	X(read, "eventfds, zmq")                                                    \
	X(readv, "READ")                                                            \
	X(pread64, "READ")                                                          \
	X(preadv, "READ")                                                           \
	X(preadv2, "READ, into guest pages")                                        \
	X(write, "eventfds, zmq, stderr")                                           \
	X(writev, "WRITE; glibc's last words")                                      \
	X(pwrite64, "WRITE")                                                        \
	X(pwritev, "WRITE")                                                         \
	X(pwritev2, "WRITE, from guest pages")                                      \
	X(getdents64, "READDIR, READDIRPLUS; /proc/self/fd")                        \
	X(lseek, "LSEEK, READDIR at an offset")                                     \
	X(ftruncate, "SETATTR size")                                                \
	X(truncate, "SETATTR size of a file that is not open")                      \
	X(fallocate, "FALLOCATE")                                                   \
	X(fsync, "FSYNC, FSYNCDIR")                                                 \
	X(fdatasync, "FSYNC of data only")                                          \
	X(syncfs, "SYNCFS")                                                         \
	X(sync_file_range, "write-back ahead of FSYNC")                             \
	X(copy_file_range, "COPY_FILE_RANGE")                                       \
	X(fstatfs, "STATFS; what kind of file system a file is on")                 \
	X(flock, "SETLK with FUSE_LK_FLOCK")                                        \
	X(fcntl, "record locks, duplicates, flags, seals")                          \
	X(fadvise64, "readahead of sequential READs")                               \
	/* Ops: extended attributes */                                              \
	X(getxattr, "GETXATTR of what cannot be opened, by its /proc/self/fd name") \
	X(lgetxattr, "GETXATTR of a symlink")                                       \
	X(fgetxattr, "GETXATTR")                                                    \
	X(setxattr, "SETXATTR of what cannot be opened")                            \
	X(lsetxattr, "SETXATTR of a symlink")                                       \
	X(fsetxattr, "SETXATTR")                                                    \
	X(listxattr, "LISTXATTR of what cannot be opened")                          \
	X(llistxattr, "LISTXATTR of a symlink")                                     \
	X(flistxattr, "LISTXATTR")                                                  \
	X(removexattr, "REMOVEXATTR of what cannot be opened")                      \
	X(lremovexattr, "REMOVEXATTR of a symlink")                                 \
	X(fremovexattr, "REMOVEXATTR")                                              \
	X(fchdir, "the directory those names are in")                               \
	/* IOCTL, and what libraries ask of fds */                                  \
	A(ioctl, 1, 0xffffffff, FS_IOC_GETFLAGS, "IOCTL: lsattr")                   \
	A(ioctl, 1, 0xffffffff, FS_IOC_SETFLAGS, "IOCTL: chattr")                   \
	A(ioctl, 1, 0xffffffff, FS_IOC_FSGETXATTR, "IOCTL: lsattr -p")              \
	A(ioctl, 1, 0xffffffff, FS_IOC_FSSETXATTR, "IOCTL: chattr -p")              \
	A(ioctl, 1, 0xffffffff, FIONBIO, "Python's socket.setblocking")             \
	A(ioctl, 1, 0xffffffff, FIOCLEX, "Python's os.set_inheritable")             \
	A(ioctl, 1, 0xffffffff, FIONREAD, "zmq")                                    \
	A(ioctl, 1, 0xffffffff, TCGETS, "Python's isatty")                          \
	/* Reads that need no thread */                                             \
	X(io_setup, "READ with O_DIRECT: direct_io.c")                              \
	X(io_submit, "READ with O_DIRECT")                                          \
	X(io_getevents, "READ with O_DIRECT")                                       \
	/* Ids of the requesting user */                                            \
	X(setresuid, "CREATE, MKDIR, … as the requesting user")                     \
	X(setresgid, "… and group")                                                 \
	X(setgroups, "… and the parent directory's group")                          \
	X(getresuid, "which ids are in force")                                      \
	X(getresgid, "which ids are in force")                                      \
	X(getuid, "which ids are in force")                                         \
	X(getgid, "which ids are in force")                                         \
	X(geteuid, "which ids are in force")                                        \
	X(getegid, "which ids are in force")                                        \
	X(capget, "switching FSETID")                                               \
	X(capset, "switching FSETID")                                               \
	X(umask, "CREATE, MKDIR, MKNOD with the requester's umask")                 \
	/* Descriptors */                                                           \
	X(close, "everything that is opened")                                       \
	X(close_range, "everything that is opened")                                 \
	X(dup, "the zmq listener; FLUSH")                                           \
	X(dup3, "stdin and stdout")                                                 \
	X(eventfd2, "zmq, the thread pool")                                         \
	X(pipe2, "Python's signal wake-up")                                         \
	/* Waiting */                                                               \
	X(poll, "zmq, the pool")                                                    \
	X(ppoll, "the serve loop")                                                  \
	X(epoll_create1, "zmq's I/O thread")                                        \
	X(epoll_ctl, "zmq's I/O thread")                                            \
	X(epoll_wait, "zmq's I/O thread")                                           \
	X(epoll_pwait, "zmq's I/O thread")                                          \
	X(epoll_pwait2, "zmq's I/O thread")                                         \
	X(pselect6, "time.sleep")                                                   \
	X(clock_nanosleep, "time.sleep")                                            \
	X(nanosleep, "waiting")                                                     \
	X(restart_syscall, "any of these, after SIGSTOP")                           \
	/* The channels: only sockets that were inherited or accepted */            \
	X(accept, "zmq, on the inherited listener")                                 \
	X(accept4, "zmq, on the inherited listener")                                \
	X(recvmsg, "the fd channel")                                                \
	X(sendmsg, "the fd channel")                                                \
	X(recvfrom, "zmq")                                                          \
	X(sendto, "zmq")                                                            \
	X(shutdown, "zmq")                                                          \
	X(getsockopt, "zmq; Python's socket objects")                               \
	X(setsockopt, "zmq")                                                        \
	X(getsockname, "zmq; whose socket it is, when the pool sweeps")             \
	X(getpeername, "zmq")                                                       \
	X(listen, "zmq calls it on the inherited listener")                         \
	/* Memory */                                                                \
	X(brk, "malloc")                                                            \
	A(mmap, 2, PROT_EXEC, 0, "malloc, stacks, guest memory")                    \
	A(mprotect, 2, PROT_EXEC, 0, "malloc, stacks")                              \
	X(munmap, "malloc, guest memory")                                           \
	X(mremap, "malloc")                                                         \
	X(madvise, "malloc, stacks; guest memory")                                  \
	/* Processes and threads */                                                 \
	A(clone, 0, CLONE_NEW_ANY, 0, "workers, threads")                           \
	X(set_robust_list, "a new thread")                                          \
	X(rseq, "a new thread")                                                     \
	X(set_tid_address, "a new thread")                                          \
	X(sigaltstack, "a new thread; the SIGBUS handler")                          \
	X(futex, "locks")                                                           \
	X(membarrier, "locks")                                                      \
	X(sched_yield, "adaptive polling; locks in the shared tables")              \
	X(sched_getaffinity, "how many CPUs there are to poll on")                  \
	A(sched_setaffinity, 0, UINT64_MAX, 0, "--queue-cpus: of the caller only")  \
	X(sched_getparam, "zmq's threads")                                          \
	X(sched_getscheduler, "zmq's threads")                                      \
	X(sched_setscheduler, "zmq's threads")                                      \
	X(getcpu, "adaptive polling")                                               \
	A(prctl, 0, 0xffffffff, PR_SET_NAME, "names of threads and processes")      \
	A(prctl, 0, 0xffffffff, PR_GET_NAME, "names of threads and processes")      \
	X(exit, "a thread's end")                                                   \
	X(exit_group, "a process's end")                                            \
	X(wait4, "the pool reaps workers")                                          \
	X(waitid, "has a worker that starts died?")                                 \
	X(kill, "the pool ends workers")                                            \
	X(tgkill, "abort")                                                          \
	X(getpid, "worker rows, zmq")                                               \
	X(gettid, "zmq, abort")                                                     \
	X(getppid, "is the pool alive?")                                            \
	X(rt_sigaction, "Python's signal handling")                                 \
	X(rt_sigprocmask, "new threads")                                            \
	X(rt_sigreturn, "signal handlers")                                          \
	X(rt_sigtimedwait, "Python's signal handling")                              \
	/* Time and chance */                                                       \
	X(clock_gettime, "where the vDSO cannot")                                   \
	X(clock_getres, "Python's time")                                            \
	X(gettimeofday, "where the vDSO cannot")                                    \
	X(time, "where the vDSO cannot")                                            \
	X(getrandom, "Python's hashing and zmq")                                    \
	X(uname, "zmq")                                                             \
	X(sysinfo, "glibc's sysconf")                                               \
	X(prlimit64, "how many fds there may be")

#endif
