// SPDX-License-Identifier: GPL-2.0

//! Names of errors.

use rustix::io::Errno;

const NAMES: [(Errno, &str); 28] = [
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::TOOBIG, "E2BIG"),
    (Errno::BADF, "EBADF"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::FAULT, "EFAULT"),
    (Errno::BUSY, "EBUSY"),
    (Errno::EXIST, "EEXIST"),
    (Errno::XDEV, "EXDEV"),
    (Errno::NODEV, "ENODEV"),
    (Errno::INVAL, "EINVAL"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NOTTY, "ENOTTY"),
    (Errno::FBIG, "EFBIG"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::SPIPE, "ESPIPE"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::PROTO, "EPROTO"),
    (Errno::MSGSIZE, "EMSGSIZE"),
    (Errno::OVERFLOW, "EOVERFLOW"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::ROFS, "EROFS"),
    (Errno::DEADLK, "EDEADLK"),
    (Errno::LOOP, "ELOOP"),
];

/// An error as the manual calls it.
pub fn name(errno: Errno) -> String {
    match NAMES.iter().find(|(known, _)| *known == errno) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("error {}", errno.raw_os_error()),
    }
}
