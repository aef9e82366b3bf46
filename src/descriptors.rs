//! How many files this process may have open: each connection is one. More connections than that are never taken, so
//! that a flood of them leaves enough for what kite itself has to open.

use crate::code::Code;

/// Files that are kept back for everything but visitors: ports, the state directory, Tor, whoever asks for the status.
pub const RESERVED: usize = 256;
/// At least one in so many files is for visitors, where there are few.
const SHARE: usize = 2;

/// Raises this process's limit to what `connections` connections need, as far as the system lets it, and says so if that is
/// not enough. Never lowers it.
pub fn raise(connections: usize) {
    let wanted = connections + RESERVED;
    let limit = system::raise(wanted);
    if limit < wanted {
        tracing::warn!(
            "[{}] this process may have {limit} files open, so it takes {} connections at a time instead of {connections}; \
             raise the limit to {wanted} (`ulimit -n`, or LimitNOFILE= in a unit)",
            Code::FewFiles,
            room(limit, connections)
        );
    }
}

/// How many of so many connections this process can have at a time.
pub fn room_for(connections: usize) -> usize {
    room(system::limit(), connections)
}

fn room(limit: usize, connections: usize) -> usize {
    limit
        .saturating_sub(RESERVED)
        .max(limit / SHARE)
        .clamp(1, connections)
}

mod system {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    /// None is no limit.
    fn number(limit: Option<u64>) -> usize {
        limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    pub(super) fn limit() -> usize {
        number(getrlimit(Resource::Nofile).current)
    }

    pub(super) fn raise(wanted: usize) -> usize {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if number(current) >= wanted {
            return number(current);
        }
        let new = wanted.min(number(maximum));
        let raised = Rlimit {
            current: Some(new as u64),
            maximum,
        };
        // Where that is not allowed, it stays as it is.
        let _ = setrlimit(Resource::Nofile, raised);
        limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_files_are_kept_back_and_some_are_always_for_visitors() {
        assert_eq!(room(65_536, 16_384), 16_384);
        assert_eq!(room(16_384 + RESERVED, 16_384), 16_384);
        assert_eq!(room(4096, 16_384), 4096 - RESERVED);
        assert_eq!(room(64, 16_384), 32);
        assert_eq!(room(1, 16_384), 1);
        assert_eq!(room(usize::MAX, 16_384), 16_384);
    }
}
