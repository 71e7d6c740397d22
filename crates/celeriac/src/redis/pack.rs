//! Orders for scripts, packed as msgpack: what Lua in Redis unpacks natively. A number travels as a number only where a
//! double has it without loss.

/// A value being packed.
#[derive(Debug, Default)]
pub(crate) struct Pack(Vec<u8>);

impl Pack {
    /// Begins an array of `length` values, which are to be appended.
    pub(crate) fn array(length: usize) -> Self {
        let mut pack = Self::default();
        pack.begin(length);
        pack
    }

    /// Begins an array within.
    pub(crate) fn begin(&mut self, length: usize) -> &mut Self {
        match u16::try_from(length) {
            Ok(short) if short < 16 => self.0.push(0x90 | short as u8),
            Ok(short) => {
                self.0.push(0xdc);
                self.0.extend(short.to_be_bytes());
            }
            Err(_) => {
                self.0.push(0xdd);
                self.0.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
            }
        }
        self
    }

    pub(crate) fn nil(&mut self) -> &mut Self {
        self.0.push(0xc0);
        self
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.0.push(if value { 0xc3 } else { 0xc2 });
        self
    }

    pub(crate) fn int(&mut self, value: i64) -> &mut Self {
        match u8::try_from(value) {
            Ok(small) if small < 128 => self.0.push(small),
            _ => {
                self.0.push(0xd3);
                self.0.extend(value.to_be_bytes());
            }
        }
        self
    }

    pub(crate) fn text(&mut self, value: impl AsRef<[u8]>) -> &mut Self {
        let bytes = value.as_ref();
        match (u8::try_from(bytes.len()), u16::try_from(bytes.len())) {
            (Ok(short), _) if short < 32 => self.0.push(0xa0 | short),
            (Ok(short), _) => self.0.extend([0xd9, short]),
            (_, Ok(middle)) => {
                self.0.push(0xda);
                self.0.extend(middle.to_be_bytes());
            }
            _ => {
                self.0.push(0xdb);
                self.0.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            }
        }
        self.0.extend(bytes);
        self
    }

    pub(crate) fn optional(&mut self, value: Option<impl AsRef<[u8]>>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.nil(),
        }
    }

    pub(crate) fn texts<T: AsRef<[u8]>>(&mut self, values: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.begin(values.len());
        for value in values {
            self.text(value);
        }
        self
    }

    /// Appends what was packed elsewhere.
    pub(crate) fn append(&mut self, other: &Pack) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use rmpv::Value;

    use super::*;

    #[test]
    fn every_size_is_read_back() {
        for length in [0, 15, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(length);
            let mut pack = Pack::array(4);
            pack.text(&text).int(length as i64).bool(true).begin(length);
            for _ in 0..length {
                pack.nil();
            }
            let expected = Value::Array(vec![
                Value::from(text),
                Value::from(length),
                Value::from(true),
                Value::Array(vec![Value::Nil; length]),
            ]);
            assert_eq!(rmpv::decode::read_value(&mut &pack.into_bytes()[..]).unwrap(), expected);
        }
        let mut pack = Pack::default();
        pack.int(-1).optional(None::<&str>).optional(Some("a"));
        let bytes = pack.into_bytes();
        let mut rest = &bytes[..];
        for expected in [Value::from(-1), Value::Nil, Value::from("a")] {
            assert_eq!(rmpv::decode::read_value(&mut rest).unwrap(), expected);
        }
    }
}
