#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kite::fuzzing::fleet(bytes));
