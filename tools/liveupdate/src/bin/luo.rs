// SPDX-License-Identifier: GPL-2.0

//! A prompt for live update: sessions and files by hand.
//!
//! Sessions live as long as somebody has them open, so this program keeps what it made until it
//! ends. `help` lists the commands.

use liveupdate::{Device, Errno, Incoming, Outgoing, Session, SessionName, Token};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::system::{RebootCommand, reboot};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, Read, Write, stdin, stdout};

const HELP: &str = "\
before the update
  create SESSION               make a session
  put SESSION TOKEN TEXT...    make a memfd with a text, and preserve it
  preserve SESSION TOKEN PATH [TEXT...]
                               open a file, write the text, and preserve it
  close SESSION                close a session, which unpreserves its files
  kexec                        reboot into the kernel that is loaded
after it
  retrieve SESSION             get a session back
  get SESSION TOKEN            get a file back, and print its start
  finish SESSION               give up what is left, and close the session
always
  sessions                     list the open sessions
  help, exit";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Default)]
struct State {
    outgoing: BTreeMap<String, Session<Outgoing>>,
    incoming: BTreeMap<String, Session<Incoming>>,
}

fn main() {
    let mut state = State::default();
    println!("Live update; `help` lists the commands.");
    loop {
        print!("luo> ");
        // A prompt that cannot be shown is no reason to stop.
        let _ = stdout().flush();
        let mut line = String::new();
        if !matches!(stdin().lock().read_line(&mut line), Ok(1..)) {
            return;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["exit"] => return,
            _ => match state.run(&words) {
                Ok(text) => println!("{text}"),
                Err(error) => println!("{error}"),
            },
        }
    }
}

impl State {
    fn run(&mut self, words: &[&str]) -> Result<String> {
        match words {
            ["help"] => Ok(HELP.to_owned()),
            ["sessions"] => Ok(self.list()),
            ["create", name] => {
                let session = open()?
                    .create_session(&SessionName::new(name)?)
                    .map_err(|errno| explain("create", errno))?;
                self.outgoing.insert((*name).to_owned(), session);
                Ok(format!("session {name} is there"))
            }
            ["put", name, token, text @ ..] => {
                let mut file = File::from(memfd_create(*name, MemfdFlags::CLOEXEC)?);
                file.write_all(text.join(" ").as_bytes())?;
                seek(&file, SeekFrom::Start(0))?;
                self.preserve(name, token, &file)
            }
            ["preserve", name, token, path, text @ ..] => {
                let mut file = File::options().read(true).write(true).open(path)?;
                if !text.is_empty() {
                    file.write_all(text.join(" ").as_bytes())?;
                }
                self.preserve(name, token, &file)
            }
            ["close", name] => {
                find(&mut self.outgoing, name)?;
                self.outgoing.remove(*name);
                Ok(format!("session {name} is closed"))
            }
            ["kexec"] => {
                reboot(RebootCommand::Kexec).map_err(|errno| explain("kexec", errno))?;
                Ok(String::new())
            }
            ["retrieve", name] => {
                let session = open()?
                    .retrieve_session(&SessionName::new(name)?)
                    .map_err(|errno| explain("retrieve", errno))?;
                self.incoming.insert((*name).to_owned(), session);
                Ok(format!("session {name} is back"))
            }
            ["get", name, token] => {
                let session = find(&mut self.incoming, name)?;
                let fd = session
                    .retrieve(number(token)?)
                    .map_err(|errno| explain("get", errno))?;
                let mut start = Vec::new();
                File::from(fd).take(200).read_to_end(&mut start)?;
                Ok(format!("\"{}\"", start.escape_ascii()))
            }
            ["finish", name] => {
                let Some(session) = self.incoming.remove(*name) else {
                    return Err(format!("no session {name} was retrieved").into());
                };
                if let Err(refused) = session.finish() {
                    self.incoming.insert((*name).to_owned(), refused.session);
                    return Err(explain("finish", refused.errno).into());
                }
                Ok(format!("session {name} is finished"))
            }
            _ => Err("that is no command; `help` lists them".into()),
        }
    }

    fn preserve(&mut self, name: &str, token: &str, file: &File) -> Result<String> {
        let session = find(&mut self.outgoing, name)?;
        session
            .preserve(file, number(token)?)
            .map_err(|errno| explain("preserve", errno))?;
        Ok(format!("token {token} of session {name} is preserved"))
    }

    fn list(&self) -> String {
        let outgoing = self
            .outgoing
            .keys()
            .map(|name| format!("{name} (outgoing)"));
        let incoming = self
            .incoming
            .keys()
            .map(|name| format!("{name} (incoming)"));
        let all: Vec<String> = outgoing.chain(incoming).collect();
        match all.is_empty() {
            true => "no session is open here".to_owned(),
            false => all.join("\n"),
        }
    }
}

fn open() -> Result<Device> {
    Ok(Device::open().map_err(|errno| explain("open", errno))?)
}

fn find<'a, T>(sessions: &'a mut BTreeMap<String, T>, name: &str) -> Result<&'a mut T> {
    let found = sessions.get_mut(name);
    found
        .ok_or_else(|| format!("no such session {name} is open here; `sessions` lists them").into())
}

fn number(token: &str) -> Result<Token> {
    let digits = token.strip_prefix("0x");
    let parsed = match digits {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => token.parse(),
    };
    match parsed {
        Ok(token) => Ok(Token(token)),
        Err(_) => Err(format!("a token is a number, and {token} is none").into()),
    }
}

/// What an error means to a person.
fn explain(call: &str, errno: Errno) -> String {
    let means = match (call, errno) {
        ("open", Errno::NOENT) => "there is no /dev/liveupdate: boot with liveupdate=on kho=on",
        ("open", Errno::BUSY) => "somebody else has /dev/liveupdate open",
        ("open", Errno::IO) => "what the previous kernel left is unusable; dmesg says why",
        ("create", Errno::EXIST) => "there is a session of that name",
        ("retrieve", Errno::NOENT) => "no session of that name came over",
        ("retrieve", Errno::INVAL) => "it was retrieved before",
        ("preserve", Errno::EXIST) => "the session has that token",
        ("preserve", Errno::BUSY) => "some session has that file",
        ("preserve", Errno::NOENT) => "no handler takes files of that kind",
        ("get", Errno::NOENT) => "the session has no such token, or its handler is not loaded",
        ("finish", Errno::BUSY) => "a file is not ready to be finished",
        ("kexec", Errno::INVAL) => "no kernel is loaded",
        _ => return format!("{call}: {errno}"),
    };
    format!("{call}: {means} ({errno})")
}
