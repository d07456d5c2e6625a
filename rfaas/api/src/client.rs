//! A blocking client of the HTTP interface, as a tool, a test or a script uses it.
//!
//! It tells statuses and bodies as they come. Typed answers are read from them with [`Answer::read`].

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// No request of a local cluster takes longer, unless the manager hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What the manager answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body; a string if it is no JSON.
    pub body: Value,
}

impl Answer {
    /// Reads the body of an answer that is no error.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Unexpected> {
        let unexpected = || Unexpected { status: self.status, body: self.body.to_string() };
        match self.status {
            200..=299 => T::deserialize(&self.body).map_err(|_| unexpected()),
            _ => Err(unexpected()),
        }
    }
}

/// An answer of another kind than the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the resource manager answered {status}: {body}")]
pub struct Unexpected {
    /// Status code.
    pub status: u16,
    /// Body, as text.
    pub body: String,
}

/// The request got no answer.
#[derive(Debug, thiserror::Error)]
#[error("{method} {url} got no answer: {reason}")]
pub struct NoAnswer {
    method: &'static str,
    url: String,
    reason: String,
}

/// A resource manager's HTTP interface.
#[derive(Clone, Debug)]
pub struct Http {
    base: String,
    agent: ureq::Agent,
}

impl Http {
    /// Makes a client of the interface at `base`, `http://HOST:PORT`.
    pub fn at(base: impl Into<String>) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .proxy(None) // the manager is on this machine
            .max_idle_connections(0) // which a manager without a place left may cut at any time
            .build()
            .into();
        Http { base: base.into(), agent }
    }

    /// `http://HOST:PORT`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Answer, NoAnswer> {
        let url = format!("{}{path}", self.base);
        answer("GET", self.agent.get(&url).call(), url)
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Result<Answer, NoAnswer> {
        let url = format!("{}{path}", self.base);
        answer("DELETE", self.agent.delete(&url).call(), url)
    }

    /// `POST path` with a JSON body.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, NoAnswer> {
        let body = serde_json::to_string(body).expect("bodies have only types of JSON");
        self.post_text(path, &body)
    }

    /// `POST path` with any body, as `curl -d` sends it: without telling that it is JSON.
    pub fn post_text(&self, path: &str, body: &str) -> Result<Answer, NoAnswer> {
        let url = format!("{}{path}", self.base);
        let request =
            self.agent.post(&url).header("Content-Type", "application/x-www-form-urlencoded");
        answer("POST", request.send(body), url)
    }
}

fn answer(
    method: &'static str,
    result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    url: String,
) -> Result<Answer, NoAnswer> {
    let read = result.and_then(|mut response| {
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    });
    match read {
        Ok((status, text)) => {
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Ok(Answer { status, body })
        }
        Err(error) => Err(NoAnswer { method, url, reason: error.to_string() }),
    }
}
