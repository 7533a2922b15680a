//! An nginx with one worker: an origin and a proxy before it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::programs::Program;

pub struct Nginx {
    _master: Program,
    /// The process that does the work.
    pub worker: u32,
    pub origin: u16,
    pub proxy: u16,
}

impl Nginx {
    pub fn start(dir: &Path) -> Self {
        let [origin, proxy] = free();
        let dir = dir.display();
        let config = format!(
            "worker_processes 1;\ndaemon off;\npid {dir}/pid;\nerror_log {dir}/errors crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n access_log off; keepalive_requests 100000000;\n\
             client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;\n\
             uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;\n\
             server {{ listen 127.0.0.1:{origin}; location / {{ return 200 \"what was asked for\\n\"; }} }}\n\
             upstream origin {{ server 127.0.0.1:{origin}; keepalive 512; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{proxy}; location / {{ proxy_pass http://origin;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host; }} }}\n}}\n"
        );
        let file = format!("{dir}/conf");
        std::fs::write(&file, config).expect("the directory is there");
        let mut command = Command::new("nginx");
        command.args(["-p", &dir.to_string(), "-c", &file]);
        let master = Program::spawn(&mut command);
        let children = format!("/proc/{0}/task/{0}/children", master.id());
        let worker = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            let children = std::fs::read_to_string(&children).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        Self {
            worker: worker.unwrap_or_else(|| panic!("nginx has no worker: {}", master.stderr())),
            _master: master,
            origin,
            proxy,
        }
    }
}

fn free<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}
