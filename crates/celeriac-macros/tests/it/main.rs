//! What `#[task]` accepts, and what the compiler says of what it cannot accept.
//!
//! Here, beside the library without any of its features, and not among the library's own tests: for these programs what
//! the library depends on is compiled once more, and with the stores in it that would take minutes.

// After a change to a message, record it with `TRYBUILD=overwrite`, and read it as someone would who made the mistake.
#[test]
fn tasks_compile_and_mistakes_are_explained() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/pass/*.rs");
    cases.compile_fail("tests/fail/*.rs");
}
