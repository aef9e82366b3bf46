//! What a browser sees at the frontend's own name: what this is, and whom to ask. Nothing of which kites there are. And what it
//! sees below that name, where the frontend carries nothing for browsers.

use std::fmt::Write;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

use super::storage::Policy;
use crate::config::{Open, OwnPage};

const STYLE: &str = include_str!("own_page.css");

/// A page, ready to be sent.
pub struct Ready {
    status: &'static str,
    html: String,
}

impl Ready {
    /// For the frontend of this name, if it is to have a page.
    pub fn new(
        page: &OwnPage,
        name: Option<&str>,
        policy: Policy,
        open: Option<&Open>,
    ) -> Option<Self> {
        let name = escaped(name.filter(|_| page.enabled)?);
        let only = match policy {
            Policy::Any => "",
            Policy::StorageOnly => {
                "<p>It passes on nothing else: no web page, no download and no form is behind any name below its own.</p>\n"
            }
        };
        let nodes = open.map(|open| {
            let domain = escaped(open.domain.as_str());
            format!(
                "<p>Storage nodes need no account here: a node may be called <code>TUBID.{domain}</code>, where <code>TUBID</code> is what \
                 stands in its <code>my_nodeid</code>, and its kite proves that by the node&#39;s own key (<code>proof = \"tub\"</code>).</p>\n"
            )
        });
        let nodes = nodes.unwrap_or_default();
        Some(Self {
            status: "200 OK",
            html: html(
                &format!("{name}: a kite frontend"),
                &name,
                &format!(
                    "<p>This is a kite frontend: it gives computers at home a public name, without telling visitors where they are.</p>\n\
                     <p>It is made for storage nodes of Tahoe-LAFS grids, whose files are encrypted before they come here; \
                     this server passes on what comes, and keeps none of it.</p>\n{only}{nodes}\
                     <p>There is nothing more for a browser to see, and this page sets no cookies and asks nobody else for anything.</p>\n{}",
                    contact(page)
                ),
            ),
        })
    }

    /// For browsers that come to a name below a frontend which carries storage and nothing else.
    pub fn storage_only(page: &OwnPage) -> Self {
        Self {
            status: "403 Forbidden",
            html: html(
                "Storage only",
                "There is no page here",
                &format!(
                    "<p>This name is for a storage node of a Tahoe-LAFS grid, or for none. The server that you have come to passes on \
                     storage traffic, which is encrypted from one end to the other, and nothing that a browser shows.</p>\n\
                     <p>If a link has led you here, what it promised is not on this server, and cannot be.</p>\n{}",
                    contact(page)
                ),
            ),
        }
    }

    /// The whole answer; to a HEAD its head alone.
    pub fn answer(&self, head_only: bool) -> Vec<u8> {
        let style = BASE64.encode(&Sha256::digest(STYLE));
        let mut answer = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            self.html.len()
        );
        if !head_only {
            answer.push_str(&self.html);
        }
        answer.into_bytes()
    }
}

/// The paragraph that says whom to ask.
fn contact(page: &OwnPage) -> String {
    let Some(contact) = &page.contact else {
        return String::new();
    };
    let shown = escaped(contact);
    let link = match contact.as_str() {
        web if web.starts_with("https://") || web.starts_with("http://") => Some(shown.clone()),
        mail if is_mail(mail) => Some(format!("mailto:{shown}")),
        _ => None,
    };
    let shown = match link {
        Some(link) => format!("<a href=\"{link}\" rel=\"noreferrer\">{shown}</a>"),
        None => shown,
    };
    format!("<p class=\"contact\">Its operator: {shown}</p>\n")
}

/// All of these are HTML already.
fn html(title: &str, heading: &str, text: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{heading}</h1>\n{text}</main>\n</body>\n</html>\n"
    )
}

/// A plain mail address, without anything that an address in a link could mean more by.
fn is_mail(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@.-_+".contains(c);
    text.chars().all(plain) && text.matches('@').count() == 1
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '<' | '>' | '"' | '\'' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(contact: &str) -> String {
        let page = OwnPage {
            contact: Some(contact.to_owned()),
            ..OwnPage::default()
        };
        let ready = Ready::new(&page, Some("alice.example"), Policy::Any, None).expect("a page");
        String::from_utf8(ready.answer(false)).expect("text")
    }

    #[test]
    fn a_contact_is_shown_and_is_never_more_than_text() {
        assert!(page("al@a.example").contains("<a href=\"mailto:al@a.example\" rel"));
        assert!(page("https://a.example/?a=1&b").contains("href=\"https://a.example/?a=1&#38;b\""));
        for bad in [
            "<script>x</script>",
            "\" onclick=\"x",
            "javascript:x@y",
            "a@b?subject=x",
        ] {
            let text = page(bad);
            assert!(
                text.contains(&escaped(bad)) && !text.contains("<a "),
                "{bad}"
            );
            assert!(
                !text.contains("<script") && !text.contains("\" onclick"),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_open_frontend_says_how_a_node_flies_here() {
        let open = Open {
            domain: "alice.example".parse().expect("a name"),
            proof: crate::config::OpenProof::Key,
            kites: 1,
            per_address: 1,
            limits: crate::frontend::limits::Limits::default(),
        };
        let text = |open| {
            let page = OwnPage::default();
            let ready = Ready::new(&page, Some("alice.example"), Policy::StorageOnly, open);
            String::from_utf8(ready.expect("a page").answer(false)).expect("text")
        };
        assert!(text(Some(&open)).contains("<code>TUBID.alice.example</code>"));
        assert!(!text(None).contains("TUBID"));
    }

    #[test]
    fn a_head_has_the_length_of_what_it_leaves_out() {
        let ready = Ready::new(
            &OwnPage::default(),
            Some("alice.example"),
            Policy::Any,
            None,
        )
        .expect("a page");
        let head = String::from_utf8(ready.answer(true)).expect("text");
        let whole = String::from_utf8(ready.answer(false)).expect("text");
        let (whole_head, body) = whole.split_once("\r\n\r\n").expect("a blank line");
        assert_eq!(head.trim_end(), whole_head);
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        let off = OwnPage {
            enabled: false,
            contact: None,
        };
        assert!(Ready::new(&off, Some("alice.example"), Policy::Any, None).is_none());
        assert!(Ready::new(&OwnPage::default(), None, Policy::Any, None).is_none());
    }
}
