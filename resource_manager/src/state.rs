//! What outlives the program: nodes, leases and bills, in one file.
//!
//! ```text
//!   start ◀──snapshot── tables ◀──commit── ledger: changes of the pool     one transaction, then it is on the disk
//!                          └──bills──▶ http: what was committed last, without asking the loop
//! ```
//! * Changes that are committed together are there together, or none of them is, whenever the
//!   program is killed or the machine fails. That is redb's doing: pages are copied when written, and the
//!   root is replaced last.
//! * BOUNDED - anybody can have leases granted that nobody claims. Of these the last [`MAX_UNCLAIMED`] bills are
//!   kept, of all others each.
//! * A file is only written if it is a state file of a format that is known here, and while no
//!   other process has it open. A new one appears under its name when it is complete.
//!
//! Elsewhere: what the tables are (`rows`), when to commit (`ledger`), the nodes as JSON (`executors_database`).

mod rows;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, Key, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, StorageBackend, TableDefinition, Value, WriteTransaction,
};
use rfaas_protocol::lease::LeaseId;

use crate::executors_database::place;
use crate::pool::{Billed, Changes, MAX_TIMEOUT, Snapshot};
use rows::{
    BILLS, ENDED_AT, FIRST_ID_KEY, FORMAT, FORMAT_KEY, LEASES, MARKS, META, NODES, POLICY_KEY,
    UNCLAIMED, WORKERS,
};

/// How long another process may have the file, and how often that is checked: a manager that was killed may
/// still be there when it is started again.
const ENDING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Bills that are read at a time where all are.
pub(crate) const MANY: usize = 4096;

/// Memory for pages of the file: those of all leases of a large cluster; bills are read again when asked for.
const CACHE_BYTES: usize = 64 << 20;

/// Bills of leases that nobody claimed that are kept: so many take some 2 MB of the file, and are more
/// than a person reads. A new one beyond them replaces the oldest, and takes one more away if there are more
/// (of a program that kept more): no commit takes much longer than what it is to commit.
pub const MAX_UNCLAIMED: u64 = 1 << 14;

/// Of a state in memory, each of so many commits is as good as one to a disk: only that frees what is not used any
/// more.
const FREED_EACH: u32 = 256;

/// Bills that are looked at for one page at most: some 10 ms.
const MOST_LOOKED_AT: usize = 2 * MAX_UNCLAIMED as usize;

/// Where a page of bills begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor((u64, u64));

impl Cursor {
    /// At the first lease that ended at `since` or later, or ever.
    pub fn at(since: Option<SystemTime>) -> Self {
        Cursor((since.map_or(0, rows::micros), 0))
    }
}

/// The state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The disk is full or fails, or the file was damaged.
    #[error("{0}")]
    Database(Box<redb::Error>),
    /// What was read makes no sense.
    #[error("{0}")]
    Row(String),
}

/// redb has an error type for each kind of call; nothing here depends on which it was.
macro_rules! from_redb {
    ($($error:ident)*) => {$(
        impl From<redb::$error> for StateError {
            fn from(error: redb::$error) -> Self {
                StateError::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(CommitError DatabaseError SetDurabilityError StorageError TableError TransactionError);

/// An open state. The loop's thread writes it, any may read.
#[derive(Debug)]
pub struct StateFile {
    database: Database,
    /// It ends with the program, so nothing has to be written for the case that this ends first.
    in_memory: bool,
    commits: AtomicU32,
}

impl StateFile {
    /// The state in the file at `path`, which is created if it is not there.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let path = &place(path).with_context(|| format!("{shown}: cannot be opened"))?;
        match fs::metadata(path) {
            Ok(file) if !file.is_file() => bail!("{shown}: is not a file"),
            Ok(file) if file.len() > 0 => {}
            Ok(_) => {
                tracing::warn!(
                    path = %shown,
                    "the state file is empty: if there were nodes, leases or bills in it, they are lost"
                );
                create(path, true).with_context(|| format!("{shown}: cannot be created"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path, false).with_context(|| format!("{shown}: cannot be created"))?;
            }
            Err(error) => return Err(error).with_context(|| format!("{shown}: cannot be opened")),
        }
        let database = open_when_free(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                anyhow::anyhow!("{shown}: another resource manager has it open")
            }
            DatabaseError::UpgradeRequired(_) => {
                anyhow::anyhow!("{shown}: is of a format that this program does not know")
            }
            error => anyhow::anyhow!("{shown}: cannot be opened as a state file: {error}"),
        })?;
        let format = format_of(&database).with_context(|| format!("{shown}: cannot be read"))?;
        match format {
            Some(FORMAT) => {
                let opened = with_all_tables(&database);
                opened.with_context(|| format!("{shown}: cannot be written"))?;
                Ok(StateFile::of(database))
            }
            Some(newer) => bail!(
                "{shown}: has format {newer}, and this program knows only {FORMAT}: it was written by a \
                 newer one"
            ),
            None => bail!("{shown}: is a database of something else"),
        }
    }

    fn of(database: Database) -> Self {
        StateFile { database, in_memory: false, commits: AtomicU32::new(0) }
    }

    /// A state that ends with the program: bills, for those who ask for them.
    pub fn in_memory() -> Result<Self, StateError> {
        Ok(StateFile { in_memory: true, ..Self::with_backend(InMemoryBackend::new())? })
    }

    /// A new state in whatever `backend` stores to.
    pub fn with_backend(backend: impl StorageBackend) -> Result<Self, StateError> {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        begin(&database)?;
        Ok(StateFile::of(database))
    }

    /// What the last run left; `None` if this is the first.
    pub fn snapshot(&self, now: SystemTime) -> Result<Option<Snapshot>, StateError> {
        let transaction = self.database.begin_read()?;
        let first_id = transaction.open_table(META)?.get(FIRST_ID_KEY)?.map(|id| id.value());
        let Some(first_id) = first_id.and_then(LeaseId::new) else { return Ok(None) };
        let marks = transaction.open_table(MARKS)?;
        let mut nodes = Vec::new();
        for row in transaction.open_table(NODES)?.iter()? {
            let (name, row) = row?;
            let marks = marks.get(name.value())?;
            let marks = marks.as_ref().map_or(("", 0), |marks| marks.value());
            nodes.push(rows::node(name.value(), row.value(), marks)?);
        }
        let mut leases = Vec::new();
        let workers = transaction.open_table(WORKERS)?;
        for row in transaction.open_table(LEASES)?.iter()? {
            let (id, row) = row?;
            let worker = workers.get(id.value())?;
            let worker = worker.as_ref().map(|worker| worker.value());
            leases.push(rows::lease(id.value(), row.value(), worker)?);
        }
        let last_bill = transaction.open_table(ENDED_AT)?.last()?.map(|(id, _)| id.value());
        let last_bill = last_bill.and_then(LeaseId::new);
        let last_lease = leases.last().map(|lease| lease.terms.lease);
        // Nodes report the end of a lease until it is acknowledged, so not much later than that.
        let since = now.checked_sub(2 * MAX_TIMEOUT);
        let mut bills = Vec::new();
        self.for_each_bill(None, since, |bill| {
            if !bill.reported || bill.lease < first_id {
                bills.push(bill);
            }
        })?;
        let policy = transaction.open_table(META)?.get(POLICY_KEY)?;
        let policy = policy.and_then(|number| rows::policy(number.value()));
        let last_id = last_lease.max(last_bill);
        Ok(Some(Snapshot { nodes, leases, bills, policy, first_id, last_id }))
    }

    /// Notes that this is the first run, and where its ids begin.
    pub fn begin(&self, first_id: LeaseId) -> Result<(), StateError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(META)?.insert(FIRST_ID_KEY, first_id.get())?;
        Ok(transaction.commit()?)
    }

    /// Makes `changes` durable: they are on the disk when this returns, all of them. In memory, bills are there for all
    /// that read, and nothing else is kept: nodes and leases are read by the next run, which does not have them.
    pub fn commit(&self, changes: &Changes) -> Result<(), StateError> {
        if self.in_memory && changes.bills.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.begin_write()?;
        let number = self.commits.fetch_add(1, Ordering::Relaxed);
        if self.in_memory && !number.is_multiple_of(FREED_EACH) {
            transaction.set_durability(Durability::None)?;
        }
        if !self.in_memory {
            write_holdings(&transaction, changes)?;
        }
        write_bills(&transaction, &changes.bills)?;
        Ok(transaction.commit()?)
    }

    /// Hands to `take` the bills of `client`, or all, for leases that ended at `since` or later, or ever; in
    /// the order in which they ended.
    pub fn for_each_bill(
        &self,
        client: Option<&str>,
        since: Option<SystemTime>,
        mut take: impl FnMut(Billed),
    ) -> Result<(), StateError> {
        let mut at = Some(Cursor::at(since));
        let ever = UNIX_EPOCH + Duration::from_micros(u64::MAX);
        while let Some(from) = at {
            let (bills, next) = self.bills(client, from, ever, MANY)?;
            bills.into_iter().for_each(&mut take);
            at = next;
        }
        Ok(())
    }

    /// Up to `most` bills of `client`, or all, from `at` on, of leases that ended at `until` at the
    /// latest; and where to go on, if there may be more. Looks at so many of others only, so a page
    /// may be empty and not the last.
    pub fn bills(
        &self,
        client: Option<&str>,
        at: Cursor,
        until: SystemTime,
        most: usize,
    ) -> Result<(Vec<Billed>, Option<Cursor>), StateError> {
        let transaction = self.database.begin_read()?;
        let wanted = at.0..=(rows::micros(until), u64::MAX);
        let tables = [transaction.open_table(BILLS)?, transaction.open_table(UNCLAIMED)?];
        let [mut claimed, mut unclaimed] =
            [tables[0].range(wanted.clone())?, tables[1].range(wanted)?];
        let mut firsts = [claimed.next().transpose()?, unclaimed.next().transpose()?];
        let mut bills = Vec::new();
        for looked_at in 0.. {
            let keys = firsts.each_ref().map(|row| row.as_ref().map(|(key, _)| key.value()));
            // Of both tables, the one that ended first.
            let (key, is_claimed) = match keys {
                [None, None] => break,
                [Some(key), None] => (key, true),
                [None, Some(key)] => (key, false),
                [Some(claimed), Some(unclaimed)] => (claimed.min(unclaimed), claimed < unclaimed),
            };
            if bills.len() >= most || looked_at >= MOST_LOOKED_AT {
                return Ok((bills, Some(Cursor(key))));
            }
            let (first, next) = match is_claimed {
                true => (&mut firsts[0], claimed.next()),
                false => (&mut firsts[1], unclaimed.next()),
            };
            let Some((_, row)) = std::mem::replace(first, next.transpose()?) else { break };
            let row = row.value();
            if client.is_none_or(|client| row.1 == client) {
                bills.push(rows::billed(key, row, is_claimed)?);
            }
        }
        Ok((bills, None))
    }

    /// The bill of one lease, if it has ended.
    pub fn bill(&self, lease: LeaseId) -> Result<Option<Billed>, StateError> {
        let transaction = self.database.begin_read()?;
        let ended_at = transaction.open_table(ENDED_AT)?.get(lease.get())?.map(|at| at.value());
        let Some(ended_at) = ended_at else { return Ok(None) };
        let key = (ended_at, lease.get());
        for (table, claimed) in [(BILLS, true), (UNCLAIMED, false)] {
            if let Some(row) = transaction.open_table(table)?.get(key)? {
                return rows::billed(key, row.value(), claimed).map(Some);
            }
        }
        Ok(None)
    }
}

/// Writes nodes, leases and the policy.
fn write_holdings(transaction: &WriteTransaction, changes: &Changes) -> Result<(), StateError> {
    if let Some(policy) = changes.policy {
        transaction.open_table(META)?.insert(POLICY_KEY, rows::policy_number(policy))?;
    }
    if !changes.nodes.is_empty() {
        let mut nodes = transaction.open_table(NODES)?;
        let mut marks = transaction.open_table(MARKS)?;
        for (name, node) in &changes.nodes {
            match node.as_ref().and_then(rows::marks) {
                Some((labels, at)) => drop(marks.insert(&**name, (&*labels, at))?),
                None => drop(marks.remove(&**name)?),
            }
            match node {
                Some(node) => drop(nodes.insert(&**name, rows::node_row(node))?),
                None => drop(nodes.remove(&**name)?),
            }
        }
    }
    if !changes.leases.is_empty() {
        let mut leases = transaction.open_table(LEASES)?;
        let mut workers = transaction.open_table(WORKERS)?;
        for (id, lease) in &changes.leases {
            let Some(lease) = lease else {
                leases.remove(id.get())?;
                workers.remove(id.get())?;
                continue;
            };
            leases.insert(id.get(), rows::lease_row(lease))?;
            // Once: a lease changes with what it uses, and what it is for stays.
            if let Some(worker) = rows::worker_row(lease)
                && workers.get(id.get())?.is_none()
            {
                workers.insert(id.get(), worker)?;
            }
        }
    }
    Ok(())
}

fn write_bills(transaction: &WriteTransaction, changed: &[Billed]) -> Result<(), StateError> {
    if !changed.is_empty() {
        let mut bills = transaction.open_table(BILLS)?;
        let mut ended = transaction.open_table(ENDED_AT)?;
        let mut unclaimed = transaction.open_table(UNCLAIMED)?;
        let mut added = 0;
        for bill in changed {
            let (lease, ended_at) = (bill.lease.get(), rows::micros(bill.ended_at));
            if let Some(before) = ended.insert(lease, ended_at)?.map(|at| at.value()) {
                // A final bill replaces a provisional one, or it was claimed just as it ended.
                bills.remove((before, lease))?;
                unclaimed.remove((before, lease))?;
            }
            let table = if bill.claimed { &mut bills } else { &mut unclaimed };
            table.insert((ended_at, lease), rows::billed_row(bill))?;
            added += u64::from(!bill.claimed);
        }
        let too_many = unclaimed.len()?.saturating_sub(MAX_UNCLAIMED).min(2 * added);
        if too_many > 0 {
            let last = ended.last()?.map(|(lease, _)| lease.value());
            for _ in 0..too_many {
                let Some((key, _)) = unclaimed.pop_first()? else { break };
                let (_, lease) = key.value();
                if Some(lease) != last {
                    ended.remove(lease)?; // of the last number, it stays known that it was used
                }
            }
        }
    }
    Ok(())
}

/// Opens the database at `path`, waiting for a process that has it and is about to end.
fn open_when_free(path: &Path) -> Result<Database, DatabaseError> {
    let start = Instant::now();
    loop {
        match builder(path).open(path) {
            Err(DatabaseError::DatabaseAlreadyOpen) if start.elapsed() < ENDING => {
                std::thread::sleep(LOOK_AGAIN);
            }
            opened => return opened,
        }
    }
}

/// Tells that a file has to be repaired, which takes a while if it is large.
fn builder(path: &Path) -> Builder {
    let path = path.to_owned();
    let mut builder = Builder::new();
    // Also after a run that ended well: else a damaged page is found by a panic some time later.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.set_repair_callback(move |_| {
        tracing::debug!(path = %path.display(), "the state file is being checked");
    });
    builder
}

/// Makes an empty state file at `path`, replacing one of no bytes: complete before it has its name, so that
/// a start that is interrupted leaves nothing that the next one stumbles over.
fn create(path: &Path, replace: bool) -> anyhow::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(directory)?;
    let database = Builder::new().create(file.path())?;
    begin(&database)?;
    drop(database); // which writes that it ended well
    file.as_file().sync_all()?;
    if replace {
        file.persist(path)?;
    } else {
        match file.persist_noclobber(path) {
            // Another process was faster. Opening the file says whose it is.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            persisted => drop(persisted?),
        }
    }
    File::open(directory)?.sync_all()?; // or a crash of the machine could forget the name
    tracing::info!(path = %path.display(), "state file created");
    Ok(())
}

/// Makes all tables, and notes the format.
fn begin(database: &Database) -> Result<(), StateError> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    transaction.open_table(UNCLAIMED)?;
    transaction.open_table(NODES)?;
    transaction.open_table(MARKS)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(WORKERS)?;
    transaction.open_table(BILLS)?;
    transaction.open_table(ENDED_AT)?;
    Ok(transaction.commit()?)
}

/// Makes the tables that earlier programs did not have; they do not mind them. A table of the unclaimed in another
/// shape, under another name, was in no release: what was in there is not kept.
fn with_all_tables(database: &Database) -> Result<(), StateError> {
    add_table(database, MARKS)?;
    add_table(database, WORKERS)?;
    drop_workers_of_no_lease(database)?;
    if is_missing(database, UNCLAIMED)? {
        let transaction = database.begin_write()?;
        transaction.open_table(UNCLAIMED)?;
        transaction.delete_table(rows::UNCLAIMED_BEFORE)?;
        transaction.commit()?;
    }
    Ok(())
}

fn is_missing<K: Key + 'static, V: Value + 'static>(
    database: &Database,
    table: TableDefinition<'_, K, V>,
) -> Result<bool, StateError> {
    let there = database.begin_read()?.open_table(table);
    Ok(matches!(there, Err(redb::TableError::TableDoesNotExist(_))))
}

/// Makes `table` if it is not there.
fn add_table<K: Key + 'static, V: Value + 'static>(
    database: &Database,
    table: TableDefinition<'_, K, V>,
) -> Result<(), StateError> {
    if is_missing(database, table)? {
        let transaction = database.begin_write()?;
        transaction.open_table(table)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Drops what leases were for that have ended in a run of an earlier program, which does not know of it.
fn drop_workers_of_no_lease(database: &Database) -> Result<(), StateError> {
    let read = database.begin_read()?;
    let leases = read.open_table(LEASES)?;
    let mut of_no_lease = Vec::new();
    for row in read.open_table(WORKERS)?.iter()? {
        let id = row?.0.value();
        if leases.get(id)?.is_none() {
            of_no_lease.push(id);
        }
    }
    if of_no_lease.is_empty() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    let mut workers = transaction.open_table(WORKERS)?;
    for id in of_no_lease {
        workers.remove(id)?;
    }
    drop(workers);
    Ok(transaction.commit()?)
}

/// The format of a state file; `None` if it is none.
fn format_of(database: &Database) -> Result<Option<u64>, StateError> {
    let meta = match database.begin_read()?.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Ok(None), // there is no such table, or not of this shape
    };
    Ok(meta.get(FORMAT_KEY)?.map(|format| format.value()))
}
