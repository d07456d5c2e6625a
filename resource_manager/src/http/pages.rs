//! Long answers: lists of nodes, leases and bills, a page at a time.
//!
//! ```text
//!   rows of a page ─▶ text ─▶ channel of one ─▶ hyper's buffer ─▶ client
//!        ▲ asked for when the last one has gone on its way
//! ```
//! * BOUNDED - of a list, however long, a page is in memory as rows and another as text. The loop is asked for a page
//!   at a time, so that it serves others in between. Whoever does not read it all in time finds it cut off.
//!
//! A list that fits into one page is of one moment. In a longer one each row is as it was when its page was read.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use http_body_util::channel::Channel;
use hyper::body::Frame;
use serde::Serialize;

use super::{Answer, Failure};

/// Rows of a page: as text some 150 KiB.
pub(super) const ROWS: usize = 512;
/// How long a client may take to read a long answer, and how long bills may be looked for.
pub(super) const READ_ALL: Duration = Duration::from_secs(60);

/// A list that is read in pages.
pub(super) trait Pages: Send + 'static {
    /// What it is of.
    type Row: Row;

    /// The next rows; fewer than [`ROWS`], perhaps none, are the last.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Self::Row>, Failure>> + Send;
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

/// Answers with all of `pages`. What fails before there is anything to say is told; later, the answer is cut off, so that
/// nobody takes a part for the whole.
pub(super) async fn answer(mut pages: impl Pages, format: Format) -> Answer {
    let rows = pages.next().await?;
    let whole = rows.len() < ROWS;
    let text = format.write(rows, true, whole).map_err(failed)?;
    let kind = [(header::CONTENT_TYPE, format.content_type())];
    if whole {
        return Ok((kind, text).into_response());
    }
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
    tokio::spawn(async move {
        let all = async {
            let mut text = text;
            loop {
                if sender.send(Frame::data(text.into())).await.is_err() {
                    return Ok(()); // the client has gone
                }
                let rows = pages.next().await.map_err(|Failure(_, why)| io::Error::other(why))?;
                let last = rows.len() < ROWS;
                text = format.write(rows, false, last)?;
                if last {
                    let _ = sender.send(Frame::data(text.into())).await; // or it has gone
                    return Ok(());
                }
            }
        };
        let late = || Err(io::Error::from(io::ErrorKind::TimedOut));
        let sent = tokio::time::timeout(READ_ALL, all).await.unwrap_or_else(|_| late());
        if let Err(error) = sent {
            tracing::debug!(%error, "a long answer over HTTP was cut off");
            sender.abort(error);
        }
    });
    Ok((kind, Body::new(body)).into_response())
}

fn failed(error: io::Error) -> Failure {
    Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// A list that there is already, and what is held until it has been read.
pub(super) struct Rows<R, H> {
    rows: VecDeque<R>,
    _held: H,
}

impl<R, H> Rows<R, H> {
    pub(super) fn new(rows: impl IntoIterator<Item = R>, held: H) -> Self {
        Rows { rows: rows.into_iter().collect(), _held: held }
    }
}

impl<R: Row + 'static, H: Send + 'static> Pages for Rows<R, H> {
    type Row = R;

    async fn next(&mut self) -> Result<Vec<R>, Failure> {
        let most = self.rows.len().min(ROWS);
        Ok(self.rows.drain(..most).collect())
    }
}

/// A text of somebody's choice, fit for a cell: what a spreadsheet would take for a formula (OWASP, "CSV injection")
/// begins with an apostrophe instead, which it takes for text.
pub(super) fn cell(text: &str) -> Option<String> {
    const BEGIN_FORMULAS: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠'];
    text.trim_start_matches(' ').starts_with(BEGIN_FORMULAS).then(|| format!("'{text}"))
}
