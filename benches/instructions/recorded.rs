//! Bytes that real programs have sent.

use std::fs;

/// The first packet of a recording that goes this way and begins so.
pub fn packet(recording: &str, way: &str, begins: &[u8]) -> Vec<u8> {
    let path = format!(
        "{}/tests/fixtures/{recording}.jsonl",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|packet| packet["dir"] == way)
        .map(|packet| {
            let hex = packet["hex"].as_str().unwrap_or_default();
            data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
        })
        .find(|bytes| bytes.starts_with(begins))
        .unwrap_or_else(|| panic!("{path}: nothing begins so"))
}
