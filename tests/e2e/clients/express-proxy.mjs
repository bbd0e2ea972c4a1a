// A proxy as front-end servers have it: it compresses what its client accepts, as Next's rewrites do.
import compression from "compression";
import express from "express";
import { createProxyMiddleware } from "http-proxy-middleware";

const app = express();
app.use(compression({ threshold: 0 }));
app.use(createProxyMiddleware({ target: process.env.TARGET }));
app.listen(Number(process.env.PORT), "127.0.0.1");
