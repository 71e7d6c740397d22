//! Names: where the function stands, unless it is given another one.

use celeriac::task::Task;

mod tasks {
    pub mod mail {
        #[celeriac::task]
        pub async fn send(to: String) -> usize {
            to.len()
        }
    }

    #[celeriac::task(name = "proj.tasks.add")]
    pub fn add(x: i32, y: i32) -> i32 {
        x + y
    }

    #[celeriac::task]
    pub fn r#match() {}
}

fn main() {
    let root = module_path!();
    assert_eq!(tasks::mail::send::NAME, format!("{root}.tasks.mail.send"));
    assert_eq!(tasks::r#match::NAME, format!("{root}.tasks.match"));
    assert_eq!(tasks::add::NAME, "proj.tasks.add");
    assert_eq!(tasks::add(1, 2).wire().task, "proj.tasks.add");

    // One name stands for both, the task and the function that calls it.
    use tasks::mail::send;
    let _ = send("a".into());
    assert_eq!(send::NAME, tasks::mail::send::NAME);
}
