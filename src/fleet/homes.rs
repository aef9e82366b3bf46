//! Which members are home to a kite: rendezvous hashing. Every member comes to the same answer by itself, and one that
//! comes or goes moves no kites but those that are its own.

use sha2::{Digest, Sha256};

use super::member::MemberId;

/// Homes of one kite.
pub const HOMES: usize = 2;

/// The homes of the kites of this name, the first choice first: `most` of these members, or all if there are not more.
pub fn homes<'a>(
    name: &str,
    members: impl IntoIterator<Item = &'a MemberId>,
    most: usize,
) -> Vec<&'a MemberId> {
    let score = |member: &MemberId| {
        let mut hash = Sha256::new();
        hash.update(member.as_str());
        // No name of a member has this.
        hash.update(b"\0");
        hash.update(name);
        hash.finalize()
    };
    let mut scored: Vec<_> = members.into_iter().map(|m| (score(m), m)).collect();
    scored.sort_unstable_by(|a, b| b.cmp(a));
    scored.into_iter().take(most).map(|(_, m)| m).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(n: usize) -> Vec<MemberId> {
        (0..n)
            .map(|i| format!("fe-{i}").parse().expect("a name"))
            .collect()
    }

    proptest! {
        #[test]
        fn a_member_that_goes_moves_its_own_kites_only(
            name in "[a-z]{1,12}\\.example", n in 2usize..12, gone in 0usize..12
        ) {
            let all = members(n);
            let gone = &all[gone % n];
            let before = homes(&name, &all, HOMES);
            let left = all.iter().filter(|m| *m != gone);
            let after = homes(&name, left, HOMES);
            let stayed: Vec<_> = before.iter().filter(|m| **m != gone).collect();
            prop_assert!(stayed.iter().all(|m| after.contains(m)));
            if !before.contains(&gone) {
                prop_assert_eq!(before, after);
            }
        }

        #[test]
        fn the_order_of_the_list_is_nothing(name in "[a-z]{1,12}\\.example", n in 1usize..9) {
            let all = members(n);
            let reversed: Vec<_> = all.iter().rev().cloned().collect();
            prop_assert_eq!(homes(&name, &all, HOMES), homes(&name, &reversed, HOMES));
            prop_assert_eq!(homes(&name, &all, HOMES).len(), n.min(HOMES));
        }
    }

    #[test]
    fn kites_are_spread() {
        let all = members(5);
        let mut kites = [0; 5];
        for i in 0..10_000 {
            for home in homes(&format!("k{i}.alice.example"), &all, HOMES) {
                kites[all.iter().position(|m| m == home).expect("one of them")] += 1;
            }
        }
        // 4,000 each, give or take: the deviation of such a count is 49.
        assert!(kites.iter().all(|n| (3750..4250).contains(n)), "{kites:?}");
    }
}
