//! The text of one rc file: lines in, settings out (protocol page §16.1).

use std::sync::Arc;

use zeroize::Zeroizing;

use super::options::{NotFound, Spec, by_letter, find};
use super::{Mistake, Place, Setting};

/// A line that Debian's package has in its account file, until the account is filled in.
const NOT_CONFIGURED: &str = "abort_not_configured";

/// Reads the text of a file that messages call `file`. Stops at the first mistake. Other files that it
/// names are not read.
pub fn parse(file: &str, text: &str) -> Result<Vec<Setting>, Mistake> {
    let file: Arc<str> = file.into();
    let mut settings = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (i, line) in lines(text).enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("END") {
            break;
        }
        let place = Place::line(&file, i + 1);
        let line = tighten(line);
        let dashes = line.chars().take_while(|c| *c == '-').count();
        match (dashes, line.trim_start_matches('-')) {
            (_, "") => return Err(place.mistake("there is no option", "remove the line")),
            (0 | 2, long) => settings.push(by_name(place, long)?),
            (1, letters) => by_letters(&place, letters, &mut settings)?,
            _ => return Err(unknown(&place)),
        }
    }
    Ok(settings)
}

/// As Python reads lines: LF, CR LF and CR alone end one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let (line, tail) = text.split_at(end);
        rest = Some(tail.strip_prefix("\r\n").unwrap_or_else(|| {
            let mut chars = tail.chars();
            chars.next();
            chars.as_str()
        }));
        Some(line)
    })
}

/// Takes the white space around every `=` and `:` away.
fn tighten(line: &str) -> Zeroizing<String> {
    let mut tight = Zeroizing::new(String::with_capacity(line.len()));
    for c in line.chars() {
        if matches!(c, '=' | ':') {
            let end = tight.trim_end().len();
            tight.truncate(end);
            tight.push(c);
        } else if !(c.is_whitespace() && tight.ends_with(['=', ':'])) {
            tight.push(c);
        }
    }
    tight
}

fn by_name(place: Place, line: &str) -> Result<Setting, Mistake> {
    let (word, value) = match line.split_once('=') {
        Some((word, value)) => (word, Some(value)),
        None => (line, None),
    };
    if word == NOT_CONFIGURED {
        return Err(place.mistake(
            "the file says that it has not been filled in yet",
            "write your kite's name and secret into it, and remove this line",
        ));
    }
    let spec = match find(word) {
        Ok(spec) => spec,
        // Whoever forgets the sign has the value in the same word, and it may be a secret.
        Err(NotFound::Unknown) => {
            let first = word.split_whitespace().next().unwrap_or_default();
            return Err(match find(first) {
                Ok(spec) if value.is_none() => needs_value(&place, spec),
                _ => unknown(&place),
            });
        }
        Err(NotFound::Ambiguous(one, other)) => {
            return Err(place.mistake(
                format!("this could be {one}, or {other}"),
                "write the whole word",
            ));
        }
    };
    match (spec.takes_value, value) {
        (true, Some(value)) => Ok(place.setting(spec, value)),
        (true, None) => Err(needs_value(&place, spec)),
        (false, None) => Ok(place.setting(spec, "")),
        (false, Some(_)) => Err(place.mistake(
            format!("{} takes no value", spec.name),
            format!("write {} alone", spec.name),
        )),
    }
}

/// `-f`, `-p80`, or several: `-aN`.
fn by_letters(place: &Place, letters: &str, settings: &mut Vec<Setting>) -> Result<(), Mistake> {
    let mut chars = letters.chars();
    while let Some(letter) = chars.next() {
        let spec = by_letter(letter).ok_or_else(|| unknown(place))?;
        if spec.takes_value {
            let value = chars.as_str().trim();
            if value.is_empty() {
                return Err(needs_value(place, spec));
            }
            settings.push(place.clone().setting(spec, value));
            return Ok(());
        }
        settings.push(place.clone().setting(spec, ""));
    }
    Ok(())
}

fn unknown(place: &Place) -> Mistake {
    place.mistake(
        "pagekite.py has no option of this name",
        "correct the line, or put a # before it",
    )
}

fn needs_value(place: &Place, spec: &Spec) -> Mistake {
    let name = spec.name;
    place.mistake(
        format!("{name} needs a value"),
        format!("write {name} = VALUE"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(usize, &'static str, String)> {
        let settings = parse("x.rc", text).unwrap_or_else(|e| panic!("{e:?}"));
        let flat = settings.into_iter();
        flat.map(|s| (s.place.line, s.name, s.value.to_string()))
            .collect()
    }

    fn wrong(text: &str) -> String {
        let e = parse("x.rc", text).expect_err(text);
        format!("{}: {}; {}", e.place, e.problem, e.remedy)
    }

    #[test]
    fn a_line_is_an_option() {
        let text = "# a comment\n\n  kitename   =  bob.example  \r\n--kitesecret = s = t : u\n\tdefaults\r\
                    service_on = http : @kitename : localhost : 80 : @kitesecret # no comment\n-f\n-p 80,443\n-aN";
        assert_eq!(
            read(text),
            [
                (3, "kitename", "bob.example".into()),
                (4, "kitesecret", "s=t:u".into()),
                (5, "defaults", String::new()),
                (
                    6,
                    "service_on",
                    "http:@kitename:localhost:80:@kitesecret # no comment".into()
                ),
                (7, "isfrontend", String::new()),
                (8, "ports", "80,443".into()),
                (9, "all", String::new()),
                (9, "new", String::new()),
            ]
        );
    }

    #[test]
    fn end_ends_the_file() {
        assert_eq!(
            read("new\nENDING\nthis is no option"),
            [(1, "new", String::new())]
        );
        assert_eq!(read(" END\n!"), []);
    }

    #[test]
    fn an_empty_value_is_one() {
        assert_eq!(read("fe_certname="), [(1, "fe_certname", String::new())]);
        assert_eq!(read("fe_certname =  "), [(1, "fe_certname", String::new())]);
    }

    #[test]
    fn each_mistake_has_its_line_and_shows_no_value() {
        for (text, problem) in [
            ("new\nkitesecret hunter2", "kitesecret needs a value"),
            ("new\nkitesecret", "kitesecret needs a value"),
            ("new\nhunter2", "no option of this name"),
            ("new\nhunter2 = hunter2", "no option of this name"),
            ("new\n---new", "no option of this name"),
            ("new\n-q", "no option of this name"),
            ("new\n-p", "ports needs a value"),
            ("new\n--", "there is no option"),
            ("new\n=hunter2", "could be"),
            ("new\nkite = hunter2", "could be kitename, or kitesecret"),
            ("new\ndefaults = hunter2", "defaults takes no value"),
            ("new\nabort_not_configured", "not been filled in"),
        ] {
            let error = wrong(text);
            assert!(
                error.contains("x.rc:2") && error.contains(problem),
                "{text}: {error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_settings_or_a_mistake(text in "(?s).{0,200}") {
            let _ = parse("x.rc", &text);
        }

        /// Whatever blanks stand where they may, the settings are the same.
        #[test]
        fn blanks_do_not_count(
            name in prop::sample::select(vec!["kitename", "frontend", "service_on", "domain"]),
            parts in prop::collection::vec("[a-z0-9@*,/.]{1,8}", 1..6),
            blanks in prop::collection::vec("[ \t]{0,3}", 16),
        ) {
            let tight = format!("{name}={}", parts.join(":"));
            let mut loose = String::new();
            for (i, c) in tight.chars().enumerate() {
                let blank = blanks.get(i % blanks.len()).map_or("", String::as_str);
                if matches!(c, '=' | ':') {
                    loose.extend([blank, &c.to_string(), blank]);
                } else {
                    loose.push(c);
                }
            }
            prop_assert_eq!(read(&tight), read(&format!("  {loose}\t")));
        }
    }
}
