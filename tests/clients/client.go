// The client of a Go program: net/http with HTTP/2 preferred, as its default transport is.
// See __init__.py for what is given and what is written.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

var url = os.Args[1]
var client *http.Client

func main() {
	transport := &http.Transport{ForceAttemptHTTP2: true, ExpectContinueTimeout: time.Minute}
	if len(os.Args) > 2 {
		transport.TLSClientConfig = context(os.Args[2])
	}
	client = &http.Client{Transport: transport, Timeout: time.Minute}
	fmt.Println("version Go", strings.TrimPrefix(runtime.Version(), "go"))
	say("get", send(request("GET", "/get?x=1", nil)))
	body := make([]byte, 100_000)
	say("post", send(request("POST", "/post", bytes.NewReader(body))))
	stream := send(request("POST", "/stream", strings.NewReader("{}")))
	lines := bufio.NewScanner(stream.Body)
	for lines.Scan() {
		if token, found := strings.CutPrefix(lines.Text(), "data: "); found {
			write("token", 0, "-", []byte(token))
		}
	}
	check(lines.Err())
	expect := request("POST", "/expect", bytes.NewReader(body))
	expect.Header.Set("Expect", "100-continue")
	say("expect", send(expect))
	slow, pieces := io.Pipe()
	go func() {
		defer pieces.Close()
		for piece := 0; piece < 30; piece++ {
			time.Sleep(60 * time.Millisecond)
			if _, err := pieces.Write(make([]byte, 50_000)); err != nil {
				return
			}
		}
	}()
	say("upload", send(request("POST", "/upload", slow)))
}

func request(method, path string, body io.Reader) *http.Request {
	made, err := http.NewRequest(method, url+path, body)
	check(err)
	return made
}

func send(made *http.Request) *http.Response {
	response, err := client.Do(made)
	check(err)
	return response
}

func say(step string, response *http.Response) {
	body, err := io.ReadAll(response.Body)
	check(err)
	write(step, response.StatusCode, response.Proto, body)
}

func write(step string, status int, version string, body []byte) {
	fmt.Println(step, status, version, base64.StdEncoding.EncodeToString(body))
}

func context(folder string) *tls.Config {
	own, err := tls.LoadX509KeyPair(filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
	check(err)
	authority, err := os.ReadFile(filepath.Join(folder, "ca.pem"))
	check(err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authority)
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: trusted}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
