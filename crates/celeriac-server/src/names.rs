//! Names that are close to one that is not there.

/// Those of `known` that `wanted` may have meant, closest first, at most three.
pub(crate) fn close<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted: Vec<char> = wanted.chars().take(LETTERS_MAX).collect();
    let allowed = (wanted.len() / 4).clamp(1, 5);
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .take(KNOWN_MAX)
        .filter_map(|name| {
            let letters: Vec<char> = name.chars().take(LETTERS_MAX).collect();
            let edits = distance(&wanted, &letters);
            // The last part of a dotted name is what people remember of it.
            let last = |letters: &[char]| -> Vec<char> {
                letters.rsplit(|letter| *letter == '.').next().unwrap_or_default().to_vec()
            };
            let same_end = !wanted.is_empty() && last(&wanted) == last(&letters);
            (edits <= allowed || same_end).then_some((edits, name))
        })
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().take(3).map(|(_, name)| name).collect()
}

const LETTERS_MAX: usize = 100;
const KNOWN_MAX: usize = 2_000;

/// How many letters are to be put in, taken out or changed, or swapped with their neighbour, to make one of the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut older: Vec<usize> = Vec::new();
    let mut before: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.iter().enumerate() {
        let mut now = vec![i + 1];
        for (j, other) in b.iter().enumerate() {
            let changed = before[j] + usize::from(letter != other);
            let mut least = changed.min(before[j + 1] + 1).min(now[j] + 1);
            if i > 0 && j > 0 && *letter == b[j - 1] && a[i - 1] == *other {
                least = least.min(older[j - 1] + 1);
            }
            now.push(least);
        }
        older = std::mem::replace(&mut before, now);
    }
    before[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood() {
        let known = ["app.digest", "app.summarise", "mail.send", "app.send"];
        let close = |wanted| close(wanted, known);
        assert_eq!(close("app.digset"), ["app.digest"]);
        assert_eq!(close("digest"), ["app.digest"]);
        assert_eq!(close("send"), ["app.send", "mail.send"]);
        assert_eq!(close("app.sumarise"), ["app.summarise"]);
        assert!(close("something.else").is_empty());
        assert!(close("").is_empty());
    }
}
