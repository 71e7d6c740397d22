//! Signatures made of signatures: chain, group, chord, map, starmap, chunks.

use super::{DecodeError, Json, JsonMap, Signature};

/// The parts of a chord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChordParts {
    /// The tasks whose results are gathered.
    pub header: Vec<Signature>,
    /// The group the header was given as, with its options; `None` for a plain list.
    pub group: Option<Signature>,
    /// What takes the list of results.
    pub body: Signature,
}

/// The parts of a map, starmap or chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapParts {
    /// What is called for each item.
    pub task: Signature,
    /// The items: the one argument each for a map, lists of arguments for a starmap and chunks.
    pub items: Vec<Json>,
    /// Items per task, for chunks.
    pub chunk: Option<usize>,
}

impl Signature {
    /// One after the other, each given the result of the one before; first step first.
    #[must_use]
    pub fn chain(tasks: &[Signature]) -> Self {
        Self::composite("celery.chain", "chain", [("tasks", list(tasks))])
    }

    /// All at once.
    #[must_use]
    pub fn group(tasks: &[Signature]) -> Self {
        Self::composite("celery.group", "group", [("tasks", list(tasks))])
    }

    /// `header`, which is a [`Signature::group`], and then `body` with the list of its results.
    #[must_use]
    pub fn chord(header: &Signature, body: &Signature) -> Self {
        let parts =
            [("kwargs", JsonMap::new().to_json()), ("header", header.encode()), ("body", body.encode())];
        Self::composite("celery.chord", "chord", parts)
    }

    /// `task` once per item, one after the other in a single task; the item is its one argument.
    #[must_use]
    pub fn xmap(task: &Signature, items: &[Json]) -> Self {
        let parts = [("task", task.encode()), ("it", Json::array(items))];
        Self { immutable: true, ..Self::composite("celery.map", "xmap", parts) }
    }

    /// The same with a list of arguments per item.
    #[must_use]
    pub fn xstarmap(task: &Signature, items: &[Json]) -> Self {
        let parts = [("task", task.encode()), ("it", Json::array(items))];
        Self { immutable: true, ..Self::composite("celery.starmap", "xstarmap", parts) }
    }

    /// A group of starmaps over `size` items each.
    #[must_use]
    pub fn chunks(task: &Signature, items: &[Json], size: usize) -> Self {
        let size = Json::trusted(&size.to_string());
        let parts = [("task", task.encode()), ("it", Json::array(items)), ("n", size)];
        Self { immutable: true, ..Self::composite("celery.chunks", "chunks", parts) }
    }

    /// Whether this is a composite of the type named: `chain`, `group`, `chord`, `xmap`, `xstarmap`, `chunks`. Celery
    /// goes by `subtask_type`; a signature without one is judged by its task's name.
    #[must_use]
    pub fn is_composite(&self, subtask_type: &str) -> bool {
        match &self.subtask_type {
            Some(own) => own == subtask_type,
            None => {
                let name = subtask_type.strip_prefix('x').unwrap_or(subtask_type);
                self.task.strip_prefix("celery.") == Some(name)
            }
        }
    }

    /// The steps of a chain or the members of a group.
    ///
    /// # Errors
    /// There is no list of signatures in `kwargs.tasks`.
    pub fn tasks(&self) -> Result<Vec<Signature>, DecodeError> {
        let tasks = self.kwargs.get("tasks").ok_or(DecodeError::Missing { part: "kwargs.tasks" })?;
        Self::read_list(tasks.as_str(), "kwargs.tasks")
    }

    /// The parts of a chord. Its header may be a list, a group, or one signature alone.
    ///
    /// # Errors
    /// A part is absent or not a signature.
    pub fn chord_parts(&self) -> Result<ChordParts, DecodeError> {
        let header = self.kwargs.get("header").ok_or(DecodeError::Missing { part: "kwargs.header" })?;
        let body = self.kwargs.get("body").ok_or(DecodeError::Missing { part: "kwargs.body" })?;
        let body = Self::read(body.as_str(), "kwargs.body")?;
        if header.as_str().starts_with('[') {
            let header = Self::read_list(header.as_str(), "kwargs.header")?;
            return Ok(ChordParts { header, group: None, body });
        }
        let header = Self::read(header.as_str(), "kwargs.header")?;
        if header.is_composite("group") {
            return Ok(ChordParts { header: header.tasks()?, group: Some(header), body });
        }
        Ok(ChordParts { header: vec![header], group: None, body })
    }

    /// The parts of a map, starmap or chunks.
    ///
    /// # Errors
    /// A part is absent or of another type; `n` is not above 0.
    pub fn map_parts(&self) -> Result<MapParts, DecodeError> {
        let task = self.kwargs.get("task").ok_or(DecodeError::Missing { part: "kwargs.task" })?;
        let items = self.kwargs.get("it").ok_or(DecodeError::Missing { part: "kwargs.it" })?;
        let chunk = self.kwargs.get("n").map(Json::to::<std::num::NonZeroUsize>).transpose();
        Ok(MapParts {
            task: Self::read(task.as_str(), "kwargs.task")?,
            items: items.array_items().map_err(|why| DecodeError::invalid("kwargs.it", why))?,
            chunk: chunk.map_err(|why| DecodeError::invalid("kwargs.n", why))?.map(Into::into),
        })
    }

    fn composite<const N: usize>(task: &str, subtask_type: &str, parts: [(&str, Json); N]) -> Self {
        Self { subtask_type: Some(subtask_type.to_owned()), ..Self::new(task, Vec::new(), parts.into()) }
    }
}

fn list(tasks: &[Signature]) -> Json {
    let mut out = String::new();
    Signature::write_list(&mut out, tasks);
    Json::trusted(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(x: usize) -> Signature {
        Signature::new("add", vec![Json::from_value(&x).unwrap()], JsonMap::new())
    }

    #[test]
    fn parts_come_back() {
        let group = Signature::group(&[add(1), add(2)]);
        assert_eq!(group.tasks().unwrap(), [add(1), add(2)]);
        let chord = Signature::chord(&group, &add(3));
        let parts = chord.chord_parts().unwrap();
        assert_eq!(parts, ChordParts { header: vec![add(1), add(2)], group: Some(group), body: add(3) });
        let mut listed = chord;
        listed.kwargs.insert("header".to_owned(), list(&[add(1)]));
        assert_eq!(listed.chord_parts().unwrap().header, [add(1)]);
        listed.kwargs.insert("header".to_owned(), add(1).encode());
        assert_eq!(listed.chord_parts().unwrap().header, [add(1)]);
        let items = [Json::string("a"), Json::null()];
        let chunks = Signature::chunks(&add(1), &items, 2).map_parts().unwrap();
        assert_eq!(chunks, MapParts { task: add(1), items: items.to_vec(), chunk: Some(2) });
        assert!(Signature::chunks(&add(1), &items, 0).map_parts().is_err());
        assert!(Signature::xmap(&add(1), &items).immutable);
        assert!(add(1).tasks().is_err() && add(1).chord_parts().is_err() && add(1).map_parts().is_err());
    }

    #[test]
    fn unknown_fields_and_missing_ones_are_tolerated() {
        let read = |text| Signature::decode(&Json::parse(text).unwrap());
        let bare = read(r#"{"task": "add", "chord_size": 3, "args": null}"#).unwrap();
        assert_eq!(bare, Signature::new("add", Vec::new(), JsonMap::new()));
        assert!(read(r#"{"task": "celery.map"}"#).unwrap().is_composite("xmap"));
        for text in
            ["{}", "[]", r#"{"task": 1}"#, r#"{"task": "a", "args": {}}"#, r#"{"task": "a", "options": []}"#]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
