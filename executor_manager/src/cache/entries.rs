//! What the cache holds, apart from the files: which libraries of which tenants, how large they are, and which go when
//! there is no room. Pure.
//!
//! ```text
//!   charge ─▶ charged ──verified──▶ held ──found──▶ held, used last
//!                └──cancel              └──no room: the one that was used longest ago goes
//! ```
//! * BOUNDED - what is charged and held together never exceeds the bounds, in bytes and in number: for each there is
//!   a file, which costs memory and a descriptor.
//! * What is only charged is not found, and does not make room for others: it is being read.

use std::collections::{BTreeMap, HashMap};

use rfaas_protocol::lease::ClientName;
use rfaas_protocol::library::LibraryHash;

/// Memory is had in pages. The size of the smallest, in bytes.
const PAGE: u64 = 4096;

/// Who may find a library.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// Everybody, where the operator lets tenants share.
    Everybody,
    /// The client of this name, and if that is known, of this user of this machine.
    Client {
        /// Its name, as in the terms of its leases.
        name: String,
        /// The Unix user.
        user: Option<u32>,
    },
}

impl Tenant {
    /// The client of this name and user. `None` if the name is none.
    pub fn client(name: &ClientName, user: Option<u32>) -> Option<Self> {
        Some(Tenant::Client { name: name.get().ok()?.to_owned(), user })
    }
}

/// What a library is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who may find it.
    pub tenant: Tenant,
    /// What it is.
    pub hash: LibraryHash,
    /// Its size in bytes, as clients announce it.
    pub bytes: u32,
}

#[derive(Debug)]
struct Entry {
    /// What it is charged, in bytes.
    charge: u64,
    /// When it was used, in the order of uses. `None`: it is charged, and not held yet.
    used: Option<u64>,
}

/// All libraries.
#[derive(Debug)]
pub struct Entries {
    most_bytes: u64,
    most: usize,
    charged: u64,
    entries: HashMap<Key, Entry>,
    /// Those that are held, by when they were used.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
}

impl Entries {
    /// None yet, and never more than `most_bytes` bytes and `most` libraries.
    pub fn new(most_bytes: u64, most: usize) -> Self {
        let (entries, by_use) = (HashMap::new(), BTreeMap::new());
        Entries { most_bytes, most, charged: 0, entries, by_use, uses: 0 }
    }

    /// Whether a library of so many bytes could ever be held.
    pub fn could_hold(&self, bytes: u32) -> bool {
        self.most > 0 && charge_of(bytes) <= self.most_bytes
    }

    /// Whether a library is held; if it is, it was used just now.
    pub fn find(&mut self, key: &Key) -> bool {
        let Some(Entry { used: Some(used), .. }) = self.entries.get_mut(key) else { return false };
        self.uses += 1;
        let key = self.by_use.remove(used).expect("of each that is held");
        *used = self.uses;
        self.by_use.insert(self.uses, key);
        true
    }

    /// Charges a library, and appends to `out` what has gone for it. False, and then nothing has gone, if it is there
    /// already, or there is no room beside what is charged.
    pub fn charge(&mut self, key: Key, out: &mut Vec<Key>) -> bool {
        let charge = charge_of(key.bytes);
        let only_charged: u64 =
            self.entries.values().filter(|entry| entry.used.is_none()).map(|e| e.charge).sum();
        let number_only_charged = self.entries.len() - self.by_use.len();
        if self.entries.contains_key(&key)
            || number_only_charged >= self.most
            || only_charged + charge > self.most_bytes
        {
            return false;
        }
        while self.charged + charge > self.most_bytes || self.entries.len() >= self.most {
            let (_, oldest) = self.by_use.pop_first().expect("what is only charged leaves room");
            self.forget(&oldest);
            out.push(oldest);
        }
        self.charged += charge;
        self.entries.insert(key, Entry { charge, used: None });
        true
    }

    /// What was charged is what it should be: it is held now, and was used just now.
    pub fn verified(&mut self, key: &Key) {
        if let Some(entry @ Entry { used: None, .. }) = self.entries.get_mut(key) {
            self.uses += 1;
            entry.used = Some(self.uses);
            self.by_use.insert(self.uses, key.clone());
        }
    }

    /// Gives up a library, charged or held.
    pub fn cancel(&mut self, key: &Key) {
        if let Some(Some(used)) = self.entries.get(key).map(|entry| entry.used) {
            self.by_use.remove(&used);
        }
        self.forget(key);
    }

    /// The number of libraries that are held, and the bytes of all that are charged.
    pub fn held(&self) -> (usize, u64) {
        (self.by_use.len(), self.charged)
    }

    /// Whether none is only charged.
    #[cfg(test)]
    pub fn all_held(&self) -> bool {
        self.entries.len() == self.by_use.len()
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.charged -= entry.charge;
        }
    }
}

/// What a library of so many bytes costs.
fn charge_of(bytes: u32) -> u64 {
    u64::from(bytes).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(tenant: u8, library: u8, bytes: u32) -> Key {
        let name = ClientName::new(&format!("tenant {tenant}")).unwrap();
        let tenant = Tenant::client(&name, None).unwrap();
        Key { tenant, hash: LibraryHash::of(&[library]), bytes }
    }

    /// Charges and holds a library; returns what has gone for it.
    fn hold(entries: &mut Entries, key: &Key) -> Vec<Key> {
        let mut gone = Vec::new();
        assert!(entries.charge(key.clone(), &mut gone), "{key:?}");
        entries.verified(key);
        gone
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut entries = Entries::new(3 * PAGE, 100);
        let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|library| key(1, library, 4000));
        for key in [&a, &b, &c] {
            assert_eq!(hold(&mut entries, key), []);
        }
        assert!(entries.find(&a));
        assert_eq!(hold(&mut entries, &d), [b]);
        assert_eq!(hold(&mut entries, &e), [c]);
        assert!(entries.find(&a) && entries.find(&d) && entries.find(&e));
    }

    #[test]
    fn a_library_is_found_by_the_tenant_it_is_of_in_the_size_it_has_once_it_is_verified() {
        let mut entries = Entries::new(10 * PAGE, 100);
        let held = key(1, 1, 100);
        assert!(entries.charge(held.clone(), &mut Vec::new()));
        assert!(!entries.find(&held), "not verified yet");
        entries.verified(&held);
        assert!(entries.find(&held));
        assert!(!entries.find(&key(2, 1, 100)), "another tenant's");
        assert!(!entries.find(&key(1, 2, 100)), "another library");
        assert!(!entries.find(&key(1, 1, 101)), "another size");
    }

    #[test]
    fn what_is_too_large_takes_nobody_s_place() {
        let mut entries = Entries::new(2 * PAGE, 100);
        let held = key(1, 1, 1);
        hold(&mut entries, &held);
        let large = key(1, 2, 2 * PAGE as u32 + 1);
        assert!(!entries.could_hold(large.bytes));
        assert!(!entries.charge(large, &mut Vec::new()));
        assert!(entries.find(&held));
        let none = Entries::new(0, 100);
        assert!(!none.could_hold(1));
    }

    #[test]
    fn what_is_being_verified_is_not_thrown_out_and_costs_as_much() {
        let mut entries = Entries::new(2 * PAGE, 100);
        let (first, second) = (key(1, 1, 1), key(1, 2, 1));
        assert!(entries.charge(first.clone(), &mut Vec::new()));
        assert!(entries.charge(second.clone(), &mut Vec::new()));
        assert!(!entries.charge(key(1, 3, 1), &mut Vec::new()));
        entries.cancel(&first);
        assert!(entries.charge(key(1, 3, 1), &mut Vec::new()));
        entries.verified(&first); // it was given up: nothing to verify
        assert!(!entries.find(&first));
    }

    /// What may happen.
    #[derive(Clone, Debug)]
    enum Step {
        Find(Key),
        Charge(Key),
        Verified(Key),
        Cancel(Key),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = (0..3u8, 0..6u8)
            .prop_map(|(tenant, library)| key(tenant, library, u32::from(library) * 3000 + 1));
        let step = (0..4u8, key).prop_map(|(what, key)| match what {
            0 => Step::Find(key),
            1 => Step::Charge(key),
            2 => Step::Verified(key),
            _ => Step::Cancel(key),
        });
        prop::collection::vec(step, 0..200)
    }

    /// The same as a list, the one that was used last at its end. Second: it is held.
    #[derive(Default)]
    struct Model(Vec<(Key, bool)>);

    impl Model {
        fn bytes(&self) -> u64 {
            self.0.iter().map(|(key, _)| charge_of(key.bytes)).sum()
        }

        fn take(&mut self, key: &Key) -> Option<bool> {
            let at = self.0.iter().position(|(k, _)| k == key)?;
            Some(self.0.remove(at).1)
        }
    }

    proptest! {
        #[test]
        fn the_bounds_hold_whatever_happens_and_the_oldest_goes(
            steps in steps(), pages in 0..20u64, most in 0..8usize,
        ) {
            let (mut entries, mut model) = (Entries::new(pages * PAGE, most), Model::default());
            for step in steps {
                match step {
                    Step::Find(key) => {
                        let held = model.0.contains(&(key.clone(), true));
                        prop_assert_eq!(entries.find(&key), held);
                        if held {
                            model.take(&key);
                            model.0.push((key, true));
                        }
                    }
                    Step::Charge(key) => {
                        let mut gone = Vec::new();
                        let charged = entries.charge(key.clone(), &mut gone);
                        let there = model.0.iter().any(|(k, _)| *k == key);
                        prop_assert!(!(charged && there));
                        prop_assert!(charged || gone.is_empty());
                        let mut expected = Vec::new();
                        if charged {
                            while model.0.len() >= most || model.bytes() + charge_of(key.bytes) > pages * PAGE {
                                let at = model.0.iter().position(|(_, held)| *held);
                                expected.push(model.0.remove(at.expect("the oldest that is held")).0);
                            }
                            model.0.push((key, false));
                        } else if !there {
                            model.0.retain(|(_, held)| !held);
                            let full = model.0.len() >= most || model.bytes() + charge_of(key.bytes) > pages * PAGE;
                            prop_assert!(full, "there was room beside what is charged");
                            return Ok(()); // the model has lost what it held
                        }
                        prop_assert_eq!(gone, expected);
                    }
                    Step::Verified(key) => {
                        entries.verified(&key);
                        if model.0.contains(&(key.clone(), false)) {
                            model.take(&key);
                            model.0.push((key, true));
                        }
                    }
                    Step::Cancel(key) => {
                        entries.cancel(&key);
                        model.take(&key);
                    }
                }
                let held = model.0.iter().filter(|(_, held)| *held).count();
                prop_assert_eq!(entries.held(), (held, model.bytes()));
                prop_assert!(model.bytes() <= pages * PAGE && model.0.len() <= most);
            }
        }
    }
}
