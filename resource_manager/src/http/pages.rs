//! Long answers: lists of nodes, leases and bills, a page at a time.
//!
//! ```text
//!   rows of a page ─▶ text ─▶ channel of one ─▶ hyper's buffer ─▶ client
//!        ▲ asked for when the last one has gone on its way
//! ```
//! * BOUNDED - of a list, however long, a page is in memory as rows and another as text. The loop is
//!   asked for a page at a time, so that it serves others in between. A client that does not read it all in
//!   time finds it cut off. Only sums of bills are in memory as a whole until then, a row for each
//!   client.
//! * The client has a time for all pages together, and each page has a time to be looked up. So
//!   nothing limits a whole list but the number of its rows: a client with many bills gets them all.
//!
//! A list that fits into one page is of one moment. In a longer one each row is as it was when its page was read.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};
use std::vec;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Frame;
use serde::Serialize;

use super::{Failure, HttpResult, within};

/// Rows of a page: as text some 150 KiB.
pub(super) const ROWS: usize = 512;
/// How long a client may take to read a long answer, not counting the time in which its pages are
/// looked up; and how long that may take for one page, or for a sum of bills.
pub(super) const READ_ALL: Duration = Duration::from_secs(60);

/// A list that is read in pages.
pub(super) trait Pages: Send + 'static {
    /// The type of its rows.
    type Row: Row;

    /// The next rows, perhaps none.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Self::Row>, Failure>> + Send;

    /// Whether `rows`, which came last, are the last: fewer than [`ROWS`].
    fn is_last(&self, rows: &[Self::Row]) -> bool {
        rows.len() < ROWS
    }
}

/// An object in JSON, a line in a table.
pub(super) trait Row: Serialize + Send {
    /// Its keys in order, if it may be in a table.
    const COLUMNS: &'static [&'static str] = &[];

    /// Makes it fit for a table.
    fn guard(&mut self) {}
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// An array.
    Json,
    /// A table with a head (RFC 4180).
    Csv,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Csv => "text/csv; charset=utf-8",
        }
    }

    /// A page as text.
    pub(super) fn write<R: Row>(
        self,
        mut rows: Vec<R>,
        first: bool,
        last: bool,
    ) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        match self {
            Format::Json => {
                text.extend_from_slice(if first { b"[" } else { b"" });
                for (at, row) in rows.iter().enumerate() {
                    text.extend_from_slice(if first && at == 0 { b"" } else { b"," });
                    serde_json::to_writer(&mut text, row)?;
                }
                text.extend_from_slice(if last { b"]" } else { b"" });
                Ok(text)
            }
            Format::Csv => {
                let mut table = csv::WriterBuilder::new()
                    .has_headers(false)
                    .terminator(csv::Terminator::CRLF)
                    .from_writer(text);
                if first {
                    table.write_record(R::COLUMNS)?;
                }
                rows.iter_mut().for_each(Row::guard);
                rows.iter().try_for_each(|row| table.serialize(row))?;
                table.into_inner().map_err(|error| error.into_error())
            }
        }
    }
}

/// Answers with all of `pages`. A failure before the first page is answered as an error; later, the
/// answer is cut off, so that nobody takes a part for the whole.
pub(super) async fn answer(pages: impl Pages, format: Format) -> HttpResult {
    answer_within(READ_ALL, pages, format).await
}

/// Likewise, to a client that may take `patience` to read it.
async fn answer_within(patience: Duration, mut pages: impl Pages, format: Format) -> HttpResult {
    let rows = within(READ_ALL, pages.next()).await??;
    let whole = pages.is_last(&rows);
    let text = format.write(rows, true, whole).map_err(failed)?;
    let kind = [(header::CONTENT_TYPE, format.content_type())];
    if whole {
        return Ok((kind, text).into_response());
    }
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
    tokio::spawn(async move {
        if let Err(error) = send(&mut sender, text, pages, format, patience).await {
            tracing::debug!(%error, "a long answer over HTTP was cut off");
            sender.abort(error);
        }
    });
    Ok((kind, Body::new(body)).into_response())
}

/// Sends `text` and the pages after it. The client's time runs while it is waited for.
async fn send(
    sender: &mut Sender<Bytes, io::Error>,
    mut text: Vec<u8>,
    mut pages: impl Pages,
    format: Format,
    mut patience: Duration,
) -> io::Result<()> {
    let mut last = false;
    loop {
        let start = Instant::now();
        let sent = tokio::time::timeout(patience, sender.send(Frame::data(text.into()))).await?;
        if sent.is_err() || last {
            return Ok(()); // the client has gone, or has it all
        }
        patience = patience.saturating_sub(start.elapsed());
        let rows = within(READ_ALL, pages.next()).await.and_then(|rows| rows);
        let rows = rows.map_err(|Failure(_, why)| io::Error::other(why))?;
        last = pages.is_last(&rows);
        text = format.write(rows, false, last)?;
    }
}

fn failed(error: io::Error) -> Failure {
    Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// A list that is in memory.
pub(super) struct Rows<R>(vec::IntoIter<R>);

impl<R> Rows<R> {
    pub(super) fn new(rows: Vec<R>) -> Self {
        Rows(rows.into_iter())
    }
}

impl<R: Row + 'static> Pages for Rows<R> {
    type Row = R;

    async fn next(&mut self) -> Result<Vec<R>, Failure> {
        Ok(self.0.by_ref().take(ROWS).collect())
    }
}

/// A text of somebody's choice, fit for a cell: what a spreadsheet would take for a formula (OWASP, "CSV injection")
/// begins with an apostrophe instead, which it takes for text.
pub(super) fn cell(text: &str) -> Option<String> {
    const BEGIN_FORMULAS: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠'];
    text.trim_start_matches(' ').starts_with(BEGIN_FORMULAS).then(|| format!("'{text}"))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::runtime;

    use super::*;

    #[derive(Serialize)]
    struct Number(usize);

    impl Row for Number {}

    /// So many pages, each of which takes a while to look up.
    struct Slow(usize);

    impl Pages for Slow {
        type Row = Number;

        async fn next(&mut self) -> Result<Vec<Number>, Failure> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.0 = self.0.saturating_sub(1);
            Ok((0..if self.0 > 0 { ROWS } else { 0 }).map(Number).collect())
        }
    }

    #[test]
    fn the_time_that_pages_take_is_not_the_clients_and_the_time_that_it_does_not_read_is() {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        // It reads whenever there is something.
        let whole = runtime.block_on(async {
            let answer = answer_within(Duration::ZERO, Slow(4), Format::Json).await;
            answer.unwrap().into_body().collect().await
        });
        let whole = whole.unwrap().to_bytes();
        assert_eq!(serde_json::from_slice::<Vec<usize>>(&whole).unwrap().len(), 3 * ROWS);
        // It reads nothing.
        let cut = runtime.block_on(async {
            let (mut sender, _body) = Channel::new(1);
            send(&mut sender, vec![b'['], Slow(4), Format::Json, Duration::ZERO).await
        });
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
