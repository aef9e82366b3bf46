//! The status page: who may see it, and its four parts. `page.html`, `page.css` and `page.js` are its own, the numbers come
//! from `/status.json` and `/traffic.json`.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use hyper::Method;
use hyper::StatusCode;
use hyper::header::{
    CONTENT_SECURITY_POLICY, COOKIE, HeaderMap, HeaderValue, LOCATION, SET_COOKIE,
};
use hyper::http::request::Parts;
use serde::Serialize;

use super::door::{Answer, Site, content, text};
use super::recorder::Recorder;
use super::session::{LENGTH, SESSION_LIFE, Word};
use super::{Reception, USUAL_PORT};
use crate::control::Desk;
use crate::listen::LocalAddr;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// Everything is ours, and nothing is within the page: what came into it by a name could not run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The page, for one kite.
pub struct Page {
    reception: Arc<Reception>,
    recorder: Arc<Recorder>,
    desk: Arc<dyn Desk>,
    /// Browsers send a cookie to all ports of a machine, so the port is in its name.
    cookie: String,
}

impl Page {
    /// Shown at `at`.
    pub fn new(
        at: &LocalAddr,
        reception: Arc<Reception>,
        recorder: Arc<Recorder>,
        desk: Arc<dyn Desk>,
    ) -> Self {
        let port = match at {
            LocalAddr::Tcp(address) => address.port(),
            LocalAddr::Unix(_) => USUAL_PORT,
        };
        Self {
            reception,
            recorder,
            desk,
            cookie: format!("kite-{port}"),
        }
    }

    /// Takes the token, and sends the browser to the page without it.
    fn enter(&self, request: &Parts) -> Answer {
        // To look at an address does not use it up.
        let token = request.uri.query().and_then(|q| q.strip_prefix("token="));
        let session = match (token.and_then(word), &request.method) {
            (Some(token), &Method::GET) => self.reception.enter(&token),
            _ => None,
        };
        let Some(session) = session else {
            return closed("This address has been used already, or is too old.");
        };
        let mut answer = text(StatusCode::SEE_OTHER, "Welcome.\n");
        let cookie = format!(
            "{}={}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict",
            self.cookie,
            HEXLOWER.encode(&session),
            SESSION_LIFE.as_secs()
        );
        let headers = answer.headers_mut();
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            headers.insert(SET_COOKIE, cookie);
        }
        headers.insert(LOCATION, HeaderValue::from_static("/"));
        answer
    }

    fn is_welcome(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).iter();
        let ours = |pair: &str| {
            let (name, value) = pair.trim().split_once('=')?;
            word(value).filter(|_| name == self.cookie)
        };
        cookies
            .filter_map(|cookies| cookies.to_str().ok())
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(ours)
            .any(|session| self.reception.knows(&session))
    }
}

impl Site for Page {
    fn answer(&self, request: &Parts) -> Answer {
        // Nothing of these is private.
        let open = match request.uri.path() {
            "/enter" => Some(self.enter(request)),
            "/page.css" => Some(content(StatusCode::OK, "text/css; charset=utf-8", STYLE)),
            "/icon.svg" => Some(content(StatusCode::OK, "image/svg+xml", ICON)),
            _ => None,
        };
        if let Some(answer) = open {
            return answer;
        }
        if !self.is_welcome(&request.headers) {
            return closed("This page is for the owner of this kite.");
        }
        match request.uri.path() {
            "/" => page(StatusCode::OK, PAGE.to_owned()),
            "/page.js" => content(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT),
            "/status.json" => {
                let mut status = self.desk.status();
                // An address of a backend is nothing for a screen.
                for backend in &mut status.backends {
                    backend.peer.clear();
                }
                json(&status)
            }
            "/traffic.json" => json(&self.recorder.plots()),
            _ => text(StatusCode::NOT_FOUND, "There is nothing here.\n"),
        }
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => content(StatusCode::OK, JSON, bytes),
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The numbers cannot be written.\n",
        ),
    }
}

fn page(status: StatusCode, html: String) -> Answer {
    let mut answer = content(status, HTML, html);
    let policy = HeaderValue::from_static(POLICY);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    answer
}

/// What one sees without a session.
fn closed(why: &str) -> Answer {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>kite</title>\n\
         <link rel=\"icon\" href=\"/icon.svg\">\n<link rel=\"stylesheet\" href=\"/page.css\">\n\
         <body class=\"door\">\n<main>\n<h1>kite</h1>\n<p>{why}</p>\n\
         <p>On this machine, as the user that runs kite, or as root, run</p>\n<pre>kite web</pre>\n\
         <p>and open the address that it prints. It works once.</p>\n</main>\n</body>\n</html>\n"
    );
    page(StatusCode::FORBIDDEN, html)
}

fn word(hex: &str) -> Option<Word> {
    if hex.len() != 2 * LENGTH {
        return None;
    }
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_64_digits() {
        assert_eq!(word(&"0f".repeat(LENGTH)), Some([15; LENGTH]));
        for bad in ["", "0f", &"0F".repeat(LENGTH), &"0g".repeat(LENGTH)] {
            assert_eq!(word(bad), None, "{bad}");
        }
        assert_eq!(word(&"0".repeat(2 * LENGTH + 2)), None);
    }

    /// What the policy forbids would only be seen in a browser.
    #[test]
    fn nothing_is_within_the_page_and_nothing_comes_from_elsewhere() {
        for text in [PAGE, SCRIPT, STYLE] {
            for bad in [
                "style=",
                "onclick",
                "onload",
                "innerHTML",
                "https://",
                "url(",
            ] {
                assert!(!text.contains(bad), "{bad}");
            }
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert!(PAGE.contains("<script src=\"/page.js\" defer></script>"));
    }
}
